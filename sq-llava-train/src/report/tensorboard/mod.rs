//! The curves and samples of a run as TensorBoard reads them.
//!
//! Every curve of a stage is a run of TensorBoard's in a folder of its own
//! (`tensorboard/stage2-validation`): training and validation lie over each other in one chart, and
//! the steps of each stage are counted from 1 as in the logs. TensorBoard follows one file of a
//! folder at a time, so each sitting of a run writes one, named after those before it.

mod record;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use self::record::{
    DT_STRING, Datum, Dim, Event, FILE_VERSION, Metadata, Picture, Plugin, SESSION_START,
    SessionLog, Shape, Summary, Tensor, Value, What, bytes_up_to, record,
};
use crate::error::TrainError;
use crate::step::report::LoggedStep;

/// Name of the folder in a run directory.
pub(crate) const TENSORBOARD: &str = "tensorboard";
/// What every event file is called before its time.
const PREFIX: &str = "events.out.tfevents.";

/// Writes events into one folder, and flushes each so that a run can be watched.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Begins a file for the steps after `done` of a stage. `kind` is part of the folder's name:
    /// empty, `-validation` or `-samples`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn open(run: &Path, stage: u8, kind: &str, done: usize) -> Result<Self, TrainError> {
        let folder = run.join(TENSORBOARD).join(format!("stage{stage}{kind}"));
        std::fs::create_dir_all(&folder).map_err(|e| TrainError::io(&folder, e))?;
        let before = event_files(&folder)?;
        // TensorBoard reads the files of a folder by name.
        let last = before.iter().filter_map(|(time, _)| *time).max();
        let time = (now() as u64).max(last.map_or(0, |time| time + 1));
        let path = folder.join(format!("{PREFIX}{time:010}.{}", std::process::id()));
        let file = File::create_new(&path).map_err(|e| TrainError::io(&path, e))?;
        let mut writer = Self {
            path,
            file: BufWriter::new(file),
        };
        writer.write(0, What::FileVersion(FILE_VERSION.into()))?;
        if !before.is_empty() {
            let status = SESSION_START;
            writer.write(done + 1, What::SessionLog(SessionLog { status }))?;
        }
        Ok(writer)
    }

    /// Values of curves at a step.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars(
        &mut self,
        step: usize,
        values: impl IntoIterator<Item = (impl Into<String>, f64)>,
    ) -> Result<(), TrainError> {
        let value = |(tag, value)| Value {
            tag: Into::into(tag),
            metadata: None,
            datum: Some(Datum::Scalar(value as f32)),
        };
        let value = values.into_iter().map(value).collect();
        self.write(step, What::Summary(Summary { value }))
    }

    /// A text, as Markdown.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn text(&mut self, step: usize, tag: &str, text: &str) -> Result<(), TrainError> {
        let plugin = Plugin {
            name: "text".into(),
        };
        let tensor = Tensor {
            dtype: DT_STRING,
            shape: Some(Shape {
                dims: vec![Dim { size: 1 }],
            }),
            strings: vec![text.into()],
        };
        self.value(
            step,
            Value {
                tag: tag.into(),
                metadata: Some(Metadata {
                    plugin: Some(plugin),
                }),
                datum: Some(Datum::Tensor(tensor)),
            },
        )
    }

    /// An RGB picture of `size` (width, height), encoded as PNG.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn picture(
        &mut self,
        step: usize,
        tag: &str,
        (width, height): (u32, u32),
        png: &[u8],
    ) -> Result<(), TrainError> {
        let picture = Picture {
            height: height as i32,
            width: width as i32,
            colorspace: 3,
            encoded: png.into(),
        };
        self.value(
            step,
            Value {
                tag: tag.into(),
                metadata: None,
                datum: Some(Datum::Picture(picture)),
            },
        )
    }

    fn value(&mut self, step: usize, value: Value) -> Result<(), TrainError> {
        self.write(step, What::Summary(Summary { value: vec![value] }))
    }

    fn write(&mut self, step: usize, what: What) -> Result<(), TrainError> {
        let event = Event {
            wall_time: now(),
            step: step as i64,
            what: Some(what),
        };
        let written = self.file.write_all(&record(&event));
        let written = written.and_then(|()| self.file.flush());
        written.map_err(|e| TrainError::io(&self.path, e))
    }
}

/// Takes back what was written after a step; `None` takes back everything. A run that resumes from
/// there writes it again, and no reader shows a point twice.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn rewind(run: &Path, to: Option<LoggedStep>) -> Result<(), TrainError> {
    let folder = run.join(TENSORBOARD);
    for (name, path) in entries(&folder)? {
        let stage = name.strip_prefix("stage").and_then(|rest| {
            let digits = rest.split('-').next().unwrap_or_default();
            digits.parse::<u8>().ok()
        });
        let Some(stage) = stage else {
            continue;
        };
        let step = match to {
            Some(to) if to.stage > stage => continue,
            Some(to) if to.stage == stage => to.step,
            _ => {
                std::fs::remove_dir_all(&path).map_err(|e| TrainError::io(&path, e))?;
                continue;
            }
        };
        for (_, file) in event_files(&path)? {
            let cut = || -> std::io::Result<()> {
                let kept = bytes_up_to(&file, step)?;
                File::options().write(true).open(&file)?.set_len(kept)
            };
            cut().map_err(|e| TrainError::io(&file, e))?;
        }
    }
    Ok(())
}

/// The event files of a folder with their times.
fn event_files(folder: &Path) -> Result<Vec<(Option<u64>, PathBuf)>, TrainError> {
    let time = |name: &str| {
        let rest = name.strip_prefix(PREFIX)?;
        Some(rest.split('.').next()?.parse().ok())
    };
    let found = entries(folder)?.into_iter();
    Ok(found
        .filter_map(|(name, path)| Some((time(&name)?, path)))
        .collect())
}

/// What a folder holds; nothing if it is not there.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, TrainError> {
    let list = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(|e| TrainError::io(folder, e))?,
    };
    list.map(|entry| {
        let entry = entry.map_err(|e| TrainError::io(folder, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        Ok((name, entry.path()))
    })
    .collect()
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests;
