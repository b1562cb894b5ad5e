//! Image processors of every kind against transformers' (`scripts/processor_fixtures.py`).

use std::path::Path;

use golden::Tensors;
use sq_llava_data::image::{ImageProcessor, ImageProcessorConfig};

#[test]
fn fault_08_every_processor_gives_the_pixels_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/processor");
    let cases = golden::json(&folder.join("cases.json"));
    let tensors = Tensors::read(&folder.join("pixels.safetensors"));
    let mut compared = 0;
    for name in tensors.names() {
        let (case, picture) = name.split_once('.').expect("case.picture");
        let config: ImageProcessorConfig =
            serde_json::from_value(cases[case].clone()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let processor = ImageProcessor::new(config.clone()).expect("a valid configuration");
        let path = folder.join(format!("{picture}.png"));
        let found = processor.preprocess_path(&path).expect("a picture");
        assert_eq!(
            [3, found.height, found.width],
            *tensors.shape(name),
            "{name}"
        );
        // One step of eight bits, in the processor's units.
        let rescale = if config.do_rescale {
            config.rescale_factor
        } else {
            1.0
        };
        let deviation = if config.do_normalize {
            config.image_std
        } else {
            [1.0; 3]
        };
        let channel = found.height * found.width;
        for (i, (ours, theirs)) in found.data.iter().zip(tensors.f32(name)).enumerate() {
            let step = rescale / deviation[i / channel] * 1.01;
            let error = f64::from((ours - theirs).abs());
            assert!(
                error <= step,
                "{name} at {i}: {ours}, transformers {theirs}"
            );
        }
        compared += 1;
    }
    assert!(compared >= 40, "{compared}");
}
