//! Pictures that cannot be used: what is done then, and the list of them.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sq_llava_data::mix::fnv1a;
use sq_llava_data::{DataError, files};

use crate::error::TrainError;

/// The list in a run directory, one JSON object a line.
pub(crate) const BAD_IMAGES_FILE: &str = "skipped.jsonl";

pub(crate) use crate::recipe::BadImagePolicy;

/// A picture that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadImage {
    /// Id of the sample.
    pub sample: Arc<str>,
    /// Path of the picture, as the manifest writes it.
    pub image: Arc<str>,
    /// What is wrong with it.
    pub reason: String,
}

/// The list of a run as it grows: written line by line, and each entry once although a resumed run
/// meets it again. A handle; clones write the same list.
#[derive(Debug, Clone, Default)]
pub(crate) struct BadImageLog(Option<Arc<Mutex<List>>>);

#[derive(Debug)]
struct List {
    path: PathBuf,
    stage: u8,
    policy: BadImagePolicy,
    /// What stands in the file already, by hash.
    known: HashSet<u64>,
    /// Entries of this stage.
    of_stage: usize,
    file: Option<File>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    stage: u8,
    epoch: usize,
    step: usize,
    policy: BadImagePolicy,
    sample: String,
    image: String,
    reason: String,
}

impl Line {
    fn hash(&self) -> u64 {
        let key = (self.stage, self.epoch, self.step, &self.sample, &self.image);
        fnv1a(format!("{key:?}").as_bytes())
    }
}

impl BadImageLog {
    /// The list of a run directory for a stage, after the entries that are there already. The file
    /// is made with the first entry.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn open(run: &Path, stage: u8, policy: BadImagePolicy) -> Result<Self, TrainError> {
        let path = run.join(BAD_IMAGES_FILE);
        let text = match files::read_to_string(&path) {
            Ok(text) => text,
            Err(DataError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                String::new()
            }
            Err(error) => return Err(error.into()),
        };
        // A killed run may have left half a line: that entry is written again.
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let lines: Vec<Line> = lines.collect();
        Ok(Self(Some(Arc::new(Mutex::new(List {
            path,
            stage,
            policy,
            of_stage: lines.iter().filter(|line| line.stage == stage).count(),
            known: lines.iter().map(Line::hash).collect(),
            file: None,
        })))))
    }

    /// Adds what a batch of the step `step`, from 0, met.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&self, epoch: usize, step: usize, bad: &[BadImage]) -> Result<(), TrainError> {
        let Some(list) = self.0.as_ref().filter(|_| !bad.is_empty()) else {
            return Ok(());
        };
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        for image in bad {
            let line = Line {
                stage: list.stage,
                epoch: epoch + 1,
                step: step + 1,
                policy: list.policy,
                sample: image.sample.to_string(),
                image: image.image.to_string(),
                reason: image.reason.clone(),
            };
            if list.known.insert(line.hash()) {
                list.of_stage += 1;
                list.write(&line)?;
            }
        }
        Ok(())
    }

    /// Says how many there were, and where they are listed.
    pub fn summary(&self) -> Option<String> {
        let list = self.0.as_ref()?;
        let list = list.lock().unwrap_or_else(PoisonError::into_inner);
        let what = match list.policy {
            BadImagePolicy::Blank => "shown blank",
            BadImagePolicy::Error | BadImagePolicy::Skip => "left out with their samples",
        };
        (list.of_stage > 0).then(|| {
            format!(
                "stage {}: {} pictures could not be used and were {what}: {}",
                list.stage,
                list.of_stage,
                list.path.display()
            )
        })
    }
}

impl List {
    fn write(&mut self, line: &Line) -> Result<(), TrainError> {
        let text = serde_json::to_string(line)
            .map_err(|e| TrainError::Internal(format!("a list entry is not JSON: {e}")))?;
        let fail = |error| TrainError::io(&self.path, error);
        if self.file.is_none() {
            let mut file = OpenOptions::new()
                .create(true)
                .read(true)
                .append(true)
                .open(&self.path)
                .map_err(fail)?;
            end_line(&mut file).map_err(fail)?;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => writeln!(file, "{text}").map_err(fail),
            None => Ok(()),
        }
    }
}

/// Ends the line that a killed run left open.
fn end_line(file: &mut File) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    if file.metadata()?.len() == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    match last {
        [b'\n'] => Ok(()),
        _ => file.write_all(b"\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> BadImage {
        BadImage {
            sample: "s".into(),
            image: name.into(),
            reason: "gone".into(),
        }
    }

    #[test]
    fn each_entry_is_listed_once_through_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(BAD_IMAGES_FILE);
        let log = BadImageLog::open(dir.path(), 2, BadImagePolicy::Skip).unwrap();
        log.add(0, 4, &[]).unwrap();
        assert!(!path.exists() && log.summary().is_none());
        log.add(0, 4, &[image("a"), image("b")]).unwrap();
        log.add(0, 5, &[image("a")]).unwrap();
        // Killed inside a line.
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();

        let again = BadImageLog::open(dir.path(), 2, BadImagePolicy::Skip).unwrap();
        again.add(0, 4, &[image("b")]).unwrap();
        again.add(0, 5, &[image("a")]).unwrap();
        again.add(1, 9, &[image("a")]).unwrap();
        assert!(again.summary().unwrap().contains("4 pictures"));
        let text = std::fs::read_to_string(&path).unwrap();
        let whole = text
            .lines()
            .filter_map(|l| serde_json::from_str::<Line>(l).ok());
        let steps: Vec<(usize, usize, String)> =
            whole.map(|l| (l.epoch, l.step, l.image)).collect();
        let expected = [(1, 5, "a"), (1, 5, "b"), (1, 6, "a"), (2, 10, "a")];
        assert_eq!(steps, expected.map(|(e, s, i)| (e, s, i.to_owned())));
        let other = BadImageLog::open(dir.path(), 1, BadImagePolicy::Skip).unwrap();
        assert!(other.summary().is_none());
    }
}
