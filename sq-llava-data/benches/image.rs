//! Pictures per second from the bytes of a 640×427 JPEG to the tower's 336×336 input, and where
//! the time goes. `SQ_LLAVA_BENCH_IMAGE` names another picture.

use std::hint::black_box;
use std::io::Cursor;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use sq_llava_data::image::{ImageAspect, ImageProcessor, ImageProcessorConfig, RgbImage};

/// The bytes under test: a photograph of the golden set as JPEG of quality 90.
fn photo(processor: &ImageProcessor) -> Vec<u8> {
    if let Some(path) = std::env::var_os("SQ_LLAVA_BENCH_IMAGE") {
        return std::fs::read(path).expect("SQ_LLAVA_BENCH_IMAGE names a file");
    }
    let path = golden::repository().join("e_image/china_rgb_640x427.png");
    let image = processor.open(&path).expect("the golden photograph");
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 90))
        .expect("encodes");
    bytes.into_inner()
}

/// What the `image` crate alone would do in place of `resize_to_input` with padding.
fn pad_with_image_crate(image: &RgbImage, background: [u8; 3]) -> RgbImage {
    let side = image.width().max(image.height());
    let mut square = RgbImage::from_pixel(side, side, image::Rgb(background));
    let (x, y) = ((side - image.width()) / 2, (side - image.height()) / 2);
    image::imageops::replace(&mut square, image, x.into(), y.into());
    image::imageops::resize(&square, 336, 336, FilterType::CatmullRom)
}

fn preprocessing(criterion: &mut Criterion) {
    let processor = ImageProcessor::new(ImageProcessorConfig::default()).expect("valid");
    let cropping = ImageProcessorConfig::default().with_aspect(ImageAspect::Crop);
    let cropping = ImageProcessor::new(cropping).expect("valid");
    let bytes = photo(&processor);
    let image = processor.decode(&bytes, "photo").expect("decodes");
    let all = |processor: &ImageProcessor| {
        let image = processor
            .decode(black_box(&bytes), "photo")
            .expect("decodes");
        black_box(processor.preprocess(&image));
    };

    let mut group = criterion.benchmark_group("image");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode JPEG", |b| {
        b.iter(|| {
            processor
                .decode(black_box(&bytes), "photo")
                .expect("decodes")
        });
    });
    group.bench_function("pad to 336", |b| {
        b.iter(|| processor.resize_to_input(black_box(&image)));
    });
    group.bench_function("crop to 336", |b| {
        b.iter(|| cropping.resize_to_input(black_box(&image)));
    });
    group.bench_function("pad to 336, image crate", |b| {
        b.iter(|| pad_with_image_crate(black_box(&image), processor.background()));
    });
    group.bench_function("pad to 336 and normalise", |b| {
        b.iter(|| processor.preprocess(black_box(&image)));
    });
    group.bench_function("all, one thread", |b| b.iter(|| all(&processor)));
    group.throughput(Throughput::Elements(2));
    group.bench_function("all, two threads", |b| {
        b.iter_custom(|rounds| run_on(2, rounds, &|| all(&processor)));
    });
    group.finish();
}

/// Time in which each of `threads` threads does the work `rounds` times.
fn run_on(threads: usize, rounds: u64, work: &(dyn Fn() + Sync)) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| (0..rounds).for_each(|_| work()));
        }
    });
    begin.elapsed()
}

criterion_group! {
    name = image;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = preprocessing
}
criterion_main!(image);
