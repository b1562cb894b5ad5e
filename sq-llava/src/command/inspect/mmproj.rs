//! What `inspect` says of an `mmproj` file by itself.

use serde_json::json;
use sq_llava_model::SqLlavaConfig;

use super::{grouped, show_pictures};

/// Prints tower and projector; the language model is another file's.
pub(super) fn show(config: &SqLlavaConfig, as_json: bool) {
    let (count, width) = (config.parameters(), config.llama.hidden_size);
    if as_json {
        let written = config.to_hf();
        let keys = [
            "vision_config",
            "mm_vision_select_layer",
            "mm_vision_select_feature",
            "mm_projector_type",
            "image_aspect_ratio",
            "image_grid_pinpoints",
            "mm_patch_merge_type",
        ];
        let found = keys.into_iter().filter_map(|key| {
            let value = written.get(key)?;
            Some((key.to_owned(), value.clone()))
        });
        println!(
            "{}",
            json!({
                "config": found.collect::<serde_json::Map<_, _>>(),
                "hidden_size": width,
                "parameters": {
                    "vision_tower": count.vision_tower,
                    "projector": count.projector,
                },
            })
        );
        return;
    }
    println!("mmproj: vision tower and projector of a language model of width {width}");
    show_pictures(config);
    println!("parameters:");
    for (name, n) in [
        ("vision tower", count.vision_tower),
        ("projector", count.projector),
    ] {
        println!("  {name:<22}{:>16}", grouped(n));
    }
}
