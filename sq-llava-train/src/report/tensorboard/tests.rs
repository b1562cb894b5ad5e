use std::path::Path;

use super::record::next;
use super::*;

/// Written by `scripts/tensorboard_fixture.py` with TensorBoard's own writer.
const FIXTURE: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/tensorboard.events"
));

fn events(mut bytes: &[u8]) -> Vec<Event> {
    let read = std::iter::from_fn(|| next(&mut bytes).unwrap());
    read.map(|(event, _)| event).collect()
}

/// Events of a run's only file for `folder`, in the order of TensorBoard.
fn written(run: &Path, folder: &str) -> Vec<Event> {
    let mut files = event_files(&run.join(TENSORBOARD).join(folder)).unwrap();
    files.sort();
    files
        .iter()
        .flat_map(|(_, path)| events(&std::fs::read(path).unwrap()))
        .collect()
}

fn value(event: &Event) -> &Value {
    match &event.what {
        Some(What::Summary(summary)) => &summary.value[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn records_are_those_of_tensorboards_own_writer() {
    let read = events(FIXTURE);
    assert_eq!(read.len(), 5);
    let again: Vec<u8> = read.iter().flat_map(record).collect();
    assert_eq!(again, FIXTURE);

    // What this writer makes of the same values, but for the time.
    let dir = tempfile::tempdir().unwrap();
    drop(EventWriter::open(dir.path(), 2, "", 0).unwrap());
    let mut writer = EventWriter::open(dir.path(), 2, "", 2).unwrap();
    writer
        .scalars(3, [("loss", 0.25), ("lr_llm", 2e-4)])
        .unwrap();
    let text = "What is it? – **a cat**";
    writer.text(300, "sample 1", text).unwrap();
    let Some(Datum::Picture(picture)) = &value(&read[4]).datum else {
        panic!("no picture");
    };
    let png = picture.encoded.clone();
    writer.picture(300, "sample 1", (1, 1), &png).unwrap();
    let mut own = written(dir.path(), "stage2").split_off(1);
    for (own, read) in own.iter_mut().zip(&read) {
        own.wall_time = read.wall_time;
    }
    let own: Vec<u8> = own.iter().flat_map(record).collect();
    assert_eq!(own, FIXTURE);
}

#[test]
fn damage_ends_a_file() {
    for at in [0, 9, 14, FIXTURE.len() - 1] {
        let mut bytes = FIXTURE.to_vec();
        bytes[at] ^= 1;
        assert!(events(&bytes).len() < 5, "byte {at}");
    }
    assert_eq!(events(&FIXTURE[..FIXTURE.len() - 1]).len(), 4);
    assert!(events(&[]).is_empty());
}

#[test]
fn a_run_that_goes_on_shows_no_point_twice() {
    let dir = tempfile::tempdir().unwrap();
    for (stage, kind) in [(1, ""), (2, ""), (2, "-validation")] {
        let mut writer = EventWriter::open(dir.path(), stage, kind, 0).unwrap();
        for step in 1..=5 {
            writer.scalars(step, [("loss", 1.0)]).unwrap();
        }
    }
    // Killed in the middle of a record.
    let folder = dir.path().join(TENSORBOARD).join("stage2");
    let [(_, file)] = &event_files(&folder).unwrap()[..] else {
        panic!("one file");
    };
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() - 3]).unwrap();

    rewind(dir.path(), Some(LoggedStep { stage: 2, step: 3 })).unwrap();
    let mut writer = EventWriter::open(dir.path(), 2, "", 3).unwrap();
    writer.scalars(4, [("loss", 1.0)]).unwrap();
    let steps = |folder| -> Vec<i64> {
        let found = written(dir.path(), folder);
        let values = found
            .iter()
            .filter(|e| matches!(e.what, Some(What::Summary(_))));
        values.map(|event| event.step).collect()
    };
    assert_eq!(steps("stage2"), [1, 2, 3, 4]);
    assert_eq!(steps("stage2-validation"), [1, 2, 3]);
    assert_eq!(steps("stage1"), [1, 2, 3, 4, 5]);
    // A TensorBoard that looks on is told too.
    let starts = written(dir.path(), "stage2").into_iter().filter(
        |event| matches!(&event.what, Some(What::SessionLog(log)) if log.status == SESSION_START),
    );
    assert_eq!(starts.map(|event| event.step).collect::<Vec<_>>(), [4]);

    rewind(dir.path(), Some(LoggedStep { stage: 1, step: 0 })).unwrap();
    assert!(steps("stage1").is_empty() && !folder.exists());
    rewind(dir.path(), None).unwrap();
    assert!(!dir.path().join(TENSORBOARD).join("stage1").exists());
}
