//! What transformers' classes of LLaVA, LLaVA-NeXT and OneVision need beside the weights:
//! the token `<image>` with its row, and the files of tokenizer and processor.

use std::path::Path;

use burn::tensor::backend::Backend;
use serde_json::{Map, Value, json};
use sq_llava_data::image::ImageProcessor;
use sq_llava_data::{IMAGE_TOKEN, Layout, TextTokenizer};

use super::write::write_json;
use crate::config::SqLlavaConfig;
use crate::error::ModelError;
use crate::sq_llava::SqLlava;

/// Gives tokenizer and model the token that stands for each part of a picture. Call it before
/// [`save_pretrained`](super::save_pretrained) in [`Layout::LlavaHf`](super::Layout::LlavaHf).
///
/// # Errors
/// If the tokenizer cannot take the token, or the weights no row.
pub fn prepare_llava_hf<B: Backend>(
    model: &mut SqLlava<B>,
    tokenizer: &mut TextTokenizer,
) -> Result<(), ModelError> {
    let id = tokenizer.add_special_tokens(&[IMAGE_TOKEN])?[0];
    model.config.image_token_index = Some(id);
    let rows = usize::try_from(tokenizer.id_end()).unwrap_or_default();
    model.language_model.grow_vocabulary(rows)
}

/// The processor of videos that transformers' OneVision asks for: frames as pictures of one tile.
fn video_processor(pictures: &Map<String, Value>) -> Value {
    let alike = [
        "do_convert_rgb",
        "do_normalize",
        "do_rescale",
        "do_resize",
        "image_mean",
        "image_std",
        "resample",
        "rescale_factor",
        "size",
    ];
    let same = alike.into_iter();
    let mut video: Map<String, Value> = same
        .filter_map(|key| Some((key.to_owned(), pictures.get(key)?.clone())))
        .collect();
    let class = "LlavaOnevisionVideoProcessor";
    video.insert("video_processor_type".into(), class.into());
    Value::Object(video)
}

/// Writes the files of tokenizer and processor: `tokenizer.json`, `tokenizer_config.json`,
/// `chat_template.jinja`, `processor_config.json`, `preprocessor_config.json` and
/// `generation_config.json`.
///
/// # Errors
/// If the tokenizer lacks `<image>` or a token of the template, or a file cannot be written.
pub fn save_llava_hf_files(
    dir: &Path,
    config: &SqLlavaConfig,
    tokenizer: &TextTokenizer,
    processor: &ImageProcessor,
    template: &Layout,
) -> Result<(), ModelError> {
    let chat_template = template.to_jinja(tokenizer, IMAGE_TOKEN)?;
    tokenizer.save_for_transformers(dir, &chat_template)?;
    let vision = config.vision.as_ref();
    let patch = vision.map(|vision| vision.patch_size);
    let class = vision.is_some_and(|vision| vision.class_token);
    let mut pictures = processor.config().to_transformers()?;
    let mut whole = json!({
        "image_token": IMAGE_TOKEN,
        "vision_feature_select_strategy": config.select_feature.strategy(),
    });
    let class = match &config.anyres {
        Some(anyres) if anyres.max_tiles.is_some() => {
            whole["num_image_tokens"] = json!(config.tokens_per_image());
            whole["vision_aspect_ratio"] = json!(anyres.aspect_name());
            whole["video_processor"] = video_processor(&pictures);
            "LlavaOnevisionProcessor"
        }
        tiled => {
            whole["patch_size"] = json!(patch);
            // The class token; "default" takes one token off again.
            whole["num_additional_image_tokens"] = json!(u8::from(class));
            tiled
                .as_ref()
                .map_or("LlavaProcessor", |_| "LlavaNextProcessor")
        }
    };
    whole["processor_class"] = json!(class);
    pictures.insert("processor_class".into(), class.into());
    let mut generation = json!({"bos_token_id": tokenizer.bos_id(), "do_sample": false});
    generation["eos_token_id"] = match tokenizer.eos_ids() {
        [one] => json!(one),
        several => json!(several),
    };
    generation["pad_token_id"] = json!(tokenizer.pad_id());
    // The placeholder is never an answer.
    generation["suppress_tokens"] = json!([tokenizer.id(IMAGE_TOKEN)]);
    for (name, value) in [
        ("processor_config.json", whole),
        ("preprocessor_config.json", Value::Object(pictures)),
        ("generation_config.json", generation),
    ] {
        write_json(dir.join(name), &value)?.commit()?;
    }
    Ok(())
}
