//! Pictures and their settings, tokenizers, manifests.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage, RgbaImage};
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};
use sq_llava_data::masks::MaskFolder;
use sq_llava_data::{DataSet, Manifest, Template, TextTokenizer, conversation_of};

use crate::{Reader, Seeds};

/// A file of this repository.
pub(crate) fn file(path: impl AsRef<Path>) -> Vec<u8> {
    let path = workspace().join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The repository's root.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What stands in a folder, sorted.
pub(crate) fn entries(folder: &Path) -> Vec<PathBuf> {
    let listing = std::fs::read_dir(folder);
    let listing = listing.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found: Vec<_> = listing.map(|e| e.expect("an entry").path()).collect();
    found.sort();
    found
}

/// The files of a folder with this ending.
pub(crate) fn files(folder: &str, ending: &str) -> Seeds {
    let found = entries(&workspace().join(folder)).into_iter();
    let found = found.filter(|path| path.extension().is_some_and(|e| e == ending));
    found.map(file).collect()
}

/// Pictures of every format and colour type, as they are and turned as their EXIF says.
pub static PICTURE: Reader = Reader {
    name: "picture",
    file: "picture",
    beside: |_| {},
    seeds: pictures,
    read: |file, _| {
        for apply_exif in [false, true] {
            let config = ImageProcessorConfig {
                max_pixels: 1 << 20,
                apply_exif,
                ..ImageProcessorConfig::clip(28)
            };
            let processor = ImageProcessor::new(config).expect("a processor");
            if let Ok(image) = processor.open(file) {
                processor.preprocess(&image);
            }
            let _ = processor.inspect(file);
        }
    },
};

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("a picture");
    bytes.into_inner()
}

/// 19 × 13 pixels.
fn pictures() -> Seeds {
    use ImageFormat::{Bmp, Jpeg, Png, WebP};
    let rgb = RgbImage::from_fn(19, 13, |x, y| Rgb([(x * 13) as u8, (y * 19) as u8, 77]));
    let rgb = DynamicImage::ImageRgb8(rgb);
    let grey = DynamicImage::ImageLuma8(GrayImage::from_fn(19, 13, |x, y| Luma([(x * y) as u8])));
    let alpha = DynamicImage::ImageRgba8(RgbaImage::from(rgb.to_rgba8()));
    let wide = ImageBuffer::from_fn(19, 13, |x, y| Luma([(x * 900 + y) as u16]));
    let wide = DynamicImage::ImageLuma16(wide);
    let formats: [(&DynamicImage, &[ImageFormat]); 4] = [
        (&rgb, &[Png, Bmp, Jpeg, WebP]),
        (&grey, &[Png, Bmp, Jpeg]),
        (&alpha, &[Png, Bmp, WebP]),
        (&wide, &[Png]),
    ];
    let all = formats
        .into_iter()
        .flat_map(|(image, formats)| formats.iter().map(|&format| encoded(image, format)));
    all.chain([gif_picture()]).collect()
}

fn gif_picture() -> Vec<u8> {
    let mut bytes = Vec::new();
    let palette = [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255];
    let mut encoder = gif::Encoder::new(&mut bytes, 19, 13, &palette).expect("a GIF");
    for part in 0..2u8 {
        let pixels = (0..19 * 13)
            .map(|i| ((i + part as usize) % 4) as u8)
            .collect::<Vec<_>>();
        let frame = gif::Frame::from_indexed_pixels(19, 13, pixels, Some(part));
        encoder.write_frame(&frame).expect("a frame");
    }
    drop(encoder);
    bytes
}

const MASKS: &str = "sq-llava-data/tests/fixtures/masks";

/// Height and width of the pictures that the masks are of.
const MASKED: (u32, u32) = (23, 37);

/// Masks of a picture as a label map.
pub static LABEL_MAP: Reader = Reader {
    name: "label_map",
    file: "masks.png",
    beside: |_| {},
    seeds: || files(MASKS, "png"),
    read: masks,
};

/// Masks of a picture as COCO's annotations.
pub static MASK_ANNOTATIONS: Reader = Reader {
    name: "mask_annotations",
    file: "masks.json",
    beside: |_| {},
    seeds: || files(MASKS, "json"),
    read: masks,
};

fn masks(file: &Path, _: &Path) {
    if let Ok(map) = MaskFolder::read(file, MASKED) {
        let _ = map.masks();
    }
}

/// How a checkpoint's pictures are prepared.
pub static PICTURE_SETTINGS: Reader = Reader {
    name: "picture_settings",
    file: "preprocessor_config.json",
    beside: |_| {},
    seeds: || {
        vec![
            file("golden/data/i_end_to_end/preprocessor_config.json"),
            file("examples/assets/world-towers/vision/preprocessor_config.json"),
            file("golden/data/families/vlm_next_clip_llama/hub/preprocessor_config.json"),
        ]
    },
    read: |file, _| {
        if let Ok(config) = ImageProcessorConfig::read(file)
            && let Ok(processor) = ImageProcessor::new(config)
        {
            let _ = processor.packing((30, 700), 1).plan(16);
        }
    },
};

/// Tokenizers as transformers saves them.
pub static TOKENIZER_JSON: Reader = Reader {
    name: "tokenizer_json",
    file: "tokenizer.json",
    beside: |_| {},
    seeds: || vec![file("examples/assets/world-towers/llm/tokenizer.json")],
    read: |_, folder| tokenizer(folder),
};

/// SentencePiece's tokenizers.
pub static TOKENIZER_MODEL: Reader = Reader {
    name: "tokenizer_model",
    file: "tokenizer.model",
    beside: |_| {},
    seeds: || vec![file("golden/data/i_end_to_end/tokenizer.model")],
    read: |_, folder| tokenizer(folder),
};

/// Reads a tokenizer and uses it.
pub(crate) fn tokenizer(path: &Path) {
    let Ok(tokenizer) = TextTokenizer::from_dir(path) else {
        return;
    };
    for text in [
        "Hello <image>\nworld</s> ünï 漢",
        "",
        "[usr]How many?[aswr]",
    ] {
        if let Ok(ids) = tokenizer.encode(text, true) {
            let _ = tokenizer.decode(&ids, false);
            let _ = tokenizer.decode(&ids, true);
        }
        let _ = tokenizer.encode_with_spans(text, false);
    }
    let _ = (tokenizer.len(), tokenizer.token(300), tokenizer.pad_id());
}

const SAMPLES: &str = r#"[{"id":"a","image":"a.png","conversations":[
{"from":"human","value":"<image>\nWhat is 1 + 1?"},{"from":"gpt","value":"Two \u00fc \ud83d\ude00."},
{"from":"vuser","value":"Why?"},{"from":"gpt","value":"Because."}],"width":12},
{"id":7,"image":["b.png","c.png"],"conversations":[{"from":"human","value":"<image><image> Hi"},{"from":"gpt","value":"Hi"}]},
{"id":"t","conversations":[{"from":"human","value":"Hello"},{"from":"gpt","value":"there"}]}]"#;

/// The elements of a JSON array, one a line.
pub(crate) fn lines(array: &str) -> Vec<u8> {
    let array: Vec<serde_json::Value> = serde_json::from_str(array).expect("JSON");
    let lines = array.iter().map(|item| format!("{item}\n"));
    lines.collect::<String>().into_bytes()
}

/// LLaVA's conversations as a JSON array and as JSONL; which one, the content says.
pub(crate) fn samples() -> Seeds {
    vec![SAMPLES.as_bytes().to_vec(), lines(SAMPLES)]
}

/// Data sets of conversations.
pub static MANIFEST: Reader = Reader {
    name: "manifest",
    file: "data.json",
    beside: |_| {},
    seeds: samples,
    read: |file, _| {
        let Ok(manifest) = Manifest::open(file) else {
            return;
        };
        for index in 0..manifest.len() {
            if let Ok(sample) = manifest.get(index) {
                let _ = conversation_of(&sample, Template::V1, None, &[]);
            }
        }
    },
};

/// Data sets with pictures inside: Parquet.
pub static PARQUET: Reader = Reader {
    name: "parquet",
    file: "data.parquet",
    beside: |_| {},
    seeds: || files(SHARDS, "parquet"),
    read: |file, _| shard(file),
};

/// Data sets with pictures inside: WebDataset's tar files.
pub static TAR: Reader = Reader {
    name: "tar",
    file: "data.tar",
    beside: |_| {},
    seeds: || files(SHARDS, "tar"),
    read: |file, _| shard(file),
};

const SHARDS: &str = "sq-llava-data/tests/fixtures/sources";

/// Reads the first samples of a shard with their pictures.
fn shard(file: &Path) {
    let Ok(data) = DataSet::open_one(file, "") else {
        return;
    };
    let _ = data.sums();
    for index in (0..data.len().min(12)).rev() {
        if let Ok(sample) = data.get(index) {
            for (place, name) in sample.images.iter().enumerate() {
                let _ = data.picture(index, place, name);
            }
        }
    }
}
