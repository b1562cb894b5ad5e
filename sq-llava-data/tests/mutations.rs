//! Every reader of other people's files over damaged copies of good ones: a value or an error, no
//! panic, and memory of the file's size.

use std::io::Cursor;
use std::path::Path;

use golden::allocations::Counting;
use golden::mutation::{Budget, survives};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage, RgbaImage};
use sq_llava_data::gguf::GgufHeader;
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};
use sq_llava_data::{Manifest, Template, TextTokenizer, conversation_of};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Seeds = Vec<(String, Vec<u8>)>;

fn file(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("a picture");
    bytes.into_inner()
}

/// 19 × 13 pixels in every colour type and format.
fn pictures() -> Seeds {
    let rgb = RgbImage::from_fn(19, 13, |x, y| Rgb([(x * 13) as u8, (y * 19) as u8, 77]));
    let rgb = DynamicImage::ImageRgb8(rgb);
    let grey = DynamicImage::ImageLuma8(GrayImage::from_fn(19, 13, |x, y| Luma([(x * y) as u8])));
    let alpha = DynamicImage::ImageRgba8(RgbaImage::from(rgb.to_rgba8()));
    let wide = ImageBuffer::from_fn(19, 13, |x, y| Luma([(x * 900 + y) as u16]));
    let wide = DynamicImage::ImageLuma16(wide);
    let mut seeds = Vec::new();
    for (name, image) in [
        ("rgb", &rgb),
        ("grey", &grey),
        ("alpha", &alpha),
        ("wide", &wide),
    ] {
        seeds.push((format!("{name}.png"), encoded(image, ImageFormat::Png)));
        if !matches!(image, DynamicImage::ImageLuma16(_)) {
            seeds.push((format!("{name}.bmp"), encoded(image, ImageFormat::Bmp)));
        }
    }
    for image in [&rgb, &grey] {
        seeds.push((
            format!("{}.jpg", seeds.len()),
            encoded(image, ImageFormat::Jpeg),
        ));
    }
    seeds.push(("rgb.webp".into(), encoded(&rgb, ImageFormat::WebP)));
    seeds.push(("alpha.webp".into(), encoded(&alpha, ImageFormat::WebP)));
    seeds.push(("palette.gif".into(), gif_picture()));
    seeds
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

#[test]
fn pictures_survive_damage() {
    let processor = |apply_exif| {
        let config = ImageProcessorConfig {
            max_pixels: 1 << 20,
            apply_exif,
            ..ImageProcessorConfig::clip(28)
        };
        ImageProcessor::new(config).expect("a processor")
    };
    let processors = [processor(false), processor(true)];
    survives("pictures", &pictures(), 3000, Budget::default(), |path| {
        for processor in &processors {
            if let Ok(image) = processor.open(path) {
                processor.preprocess(&image);
            }
            let _ = processor.inspect(path);
        }
    });
}

/// Reads a tokenizer and uses it.
fn tokenizer(path: &Path) {
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

/// In the folder of the mutated file alone.
fn beside(path: &Path) -> &Path {
    path.parent().expect("a file in a folder")
}

#[test]
fn tokenizers_survive_damage() {
    let json = [(
        "tokenizer.json".into(),
        file("examples/assets/world-towers/llm/tokenizer.json"),
    )];
    survives("tokenizer-json", &json, 2000, Budget::default(), |path| {
        tokenizer(beside(path))
    });
    let model = [(
        "tokenizer.model".into(),
        file("golden/data/i_end_to_end/tokenizer.model"),
    )];
    survives("tokenizer-model", &model, 2000, Budget::default(), |path| {
        tokenizer(beside(path))
    });
    let gguf: Seeds =
        golden::entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf"))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
            .map(|path| {
                (
                    golden::file_name(&path),
                    std::fs::read(path).expect("a fixture"),
                )
            })
            .collect();
    survives("tokenizer-gguf", &gguf, 2000, Budget::default(), |path| {
        let _ = GgufHeader::open(path);
        tokenizer(path);
    });
}

const SAMPLES: &str = r#"[{"id":"a","image":"a.png","conversations":[
{"from":"human","value":"<image>\nWhat is 1 + 1?"},{"from":"gpt","value":"Two \u00fc \ud83d\ude00."},
{"from":"vuser","value":"Why?"},{"from":"gpt","value":"Because."}],"width":12},
{"id":7,"image":["b.png","c.png"],"conversations":[{"from":"human","value":"<image><image> Hi"},{"from":"gpt","value":"Hi"}]},
{"id":"t","conversations":[{"from":"human","value":"Hello"},{"from":"gpt","value":"there"}]}]"#;

fn lines(array: &str) -> Vec<u8> {
    let array: Vec<golden::Value> = serde_json::from_str(array).expect("JSON");
    array
        .iter()
        .map(|item| format!("{item}\n"))
        .collect::<String>()
        .into_bytes()
}

#[test]
fn manifests_survive_damage() {
    let seeds = [
        ("data.json".into(), SAMPLES.as_bytes().to_vec()),
        ("data.jsonl".into(), lines(SAMPLES)),
    ];
    survives("manifest", &seeds, 4000, Budget::default(), |path| {
        let Ok(manifest) = Manifest::open(path) else {
            return;
        };
        for index in 0..manifest.len() {
            if let Ok(sample) = manifest.get(index) {
                let _ = conversation_of(&sample, Template::V1, None, &[]);
            }
        }
    });
}

#[test]
fn picture_settings_survive_damage() {
    let seeds = [
        (
            "preprocessor_config.json".into(),
            file("golden/data/i_end_to_end/preprocessor_config.json"),
        ),
        (
            "preprocessor_config.json".into(),
            file("examples/assets/world-towers/vision/preprocessor_config.json"),
        ),
        (
            "preprocessor_config.json".into(),
            file("golden/data/families/vlm_next_clip_llama/hub/preprocessor_config.json"),
        ),
    ];
    survives(
        "picture-settings",
        &seeds,
        4000,
        Budget::default(),
        |path| {
            if let Ok(config) = ImageProcessorConfig::read(path)
                && let Ok(processor) = ImageProcessor::new(config)
            {
                let _ = processor.packing((30, 700), 1).plan(16);
            }
        },
    );
}
