//! Masks on their way into batches.

use sq_llava_data::masks::{MaskFolder, PatchGrid};

use super::*;
use crate::data::features::FeatureCache;
use crate::data::masks::StageMasks;

/// One mask over the whole picture, for the pictures of these numbers.
fn masked(world: &World, numbers: &[usize]) -> StageData {
    let mut data = world.data();
    let folder = world.folder.path().join("masks");
    std::fs::create_dir_all(&folder).expect("a folder");
    for number in numbers {
        let picture = world.folder.path().join(format!("{number}.png"));
        let (height, width) = data.processor.size(&picture).expect("a size");
        let whole = json!([{"segmentation": {"size": [height, width],
            "counts": [0, height * width]}}]);
        let path = folder.join(format!("{number}.json"));
        std::fs::write(path, whole.to_string()).expect("written");
    }
    data.masks = Some(StageMasks {
        folder: MaskFolder::open(folder).expect("a folder"),
        grid: PatchGrid {
            patch_size: 14,
            patches: 4,
            class_token: true,
            first_dropped: true,
        },
    });
    data
}

fn labels(batches: &[MicroBatch]) -> Vec<(String, Option<Vec<u16>>)> {
    let samples = batches.iter().flat_map(|batch| &batch.samples);
    let pictures = samples.flat_map(|sample| &sample.pictures);
    let mut found: Vec<_> = pictures
        .map(|picture| {
            let labels = picture.labels.as_ref().map(|labels| labels.to_vec());
            (picture.name.to_string(), labels)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn every_batch_knows_the_pictures_with_masks_of_its_step() {
    let world = World::new(6, 2);
    let data = Arc::new(masked(&world, &[0, 3, 4]));
    let found = all(&data, 1);
    assert_eq!(found.len(), 4);
    for step in found.chunk_by(|a, b| a.step == b.step) {
        let pictures = step.iter().flat_map(|batch| &batch.samples);
        let pictures = pictures.flat_map(|sample| &sample.pictures);
        let masked = pictures.filter(|picture| picture.labels.is_some()).count();
        assert!(step.iter().all(|batch| batch.step_masked == masked));
    }
    let found = labels(&found);
    for (name, labels) in &found {
        let labels = labels.as_ref();
        let covered = labels.map(|labels| labels.iter().filter(|&&label| label == 1).count());
        // Padding is no mask: a square, 13×9 and 600×37 pixels.
        let expected = match name.as_str() {
            "0.png" => Some(16),
            "3.png" => Some(8),
            "4.png" => Some(0),
            _ => None,
        };
        assert_eq!(covered, expected, "{name}");
    }
    // Pictures that are not decoded, since their features are known, have the same.
    let cache = FeatureCache::new(1 << 20);
    for name in (0..6).map(|i| format!("{i}.png")) {
        let key = world.folder.path().join(name).display().to_string();
        cache.insert(&key.into(), &vec![0.0].into());
    }
    let known = StageData {
        features: Some(Arc::new(cache)),
        ..masked(&world, &[])
    };
    let batches = all(&Arc::new(known), 1);
    let pictures = batches.iter().flat_map(|batch| &batch.samples);
    let mut pictures = pictures.flat_map(|sample| &sample.pictures);
    assert!(pictures.all(|picture| picture.pixels.is_none()));
    assert_eq!(labels(&batches), found);
}

#[test]
fn blank_pictures_and_silent_samples_have_no_masks() {
    let world = World::new(4, 0);
    let data = masked(&world, &[0, 1, 2, 3]);
    world.spoil(1);
    // A blank picture has no name.
    let masks = world.folder.path().join("masks");
    std::fs::write(masks.join(".json"), "[]").expect("written");
    let data = Arc::new(StageData {
        bad_images: BadImagePolicy::Blank,
        ..data
    });
    let found = all(&data, 1);
    for sample in found.iter().flat_map(|batch| &batch.samples) {
        let shown = *sample.id != *"s1";
        assert_eq!(sample.pictures[0].labels.is_some(), shown, "{}", sample.id);
    }
    let mut samples = found.iter().flat_map(|batch| &batch.samples);
    let mut sample = samples.find(|s| *s.id == *"s2").expect("s2").clone();
    let mut look = |learnt: bool| {
        sample.pictures[0].labels = None;
        if !learnt {
            sample.roles.fill(TokenRole::Ignore);
        }
        let masked = data.masked_pictures(&sample).expect("a number");
        data.label_pictures(2, &mut sample, &[]).expect("read");
        (masked, sample.pictures[0].labels.is_some())
    };
    assert_eq!(look(true), (1, true));
    assert_eq!(look(false), (0, false));
}
