//! The loss log of a run: one line a step, as JSON lines and as CSV.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::TrainError;
use crate::metrics::{Quantity, StepReport};

/// Names of the two files in a run directory.
pub const LOG_FILES: [&str; 2] = ["log.jsonl", "log.csv"];

/// Writes a line a step to both files and flushes it, so that a run can be watched and a killed
/// one keeps its curve.
#[derive(Debug)]
pub struct LossLog {
    files: [(PathBuf, BufWriter<File>); 2],
}

impl LossLog {
    /// Opens the log of a run directory, behind what a stage before has written.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn open(directory: &Path) -> Result<Self, TrainError> {
        let open = |name: &str| {
            let path = directory.join(name);
            let file = OpenOptions::new().create(true).append(true).open(&path);
            let file = file.map_err(|e| TrainError::io(&path, e))?;
            Ok::<_, TrainError>((path, BufWriter::new(file)))
        };
        let mut log = Self {
            files: [open(LOG_FILES[0])?, open(LOG_FILES[1])?],
        };
        let empty = std::fs::metadata(directory.join(LOG_FILES[1])).map_or(0, |m| m.len()) == 0;
        if empty {
            let names = Quantity::ALL.map(Quantity::name).join(",");
            let counts = "tokens,question_tokens,answer_tokens,samples,truncated";
            log.line(1, &format!("stage,step,epoch,{names},{counts}"))?;
        }
        Ok(log)
    }

    /// Writes a step, counted from 1.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(
        &mut self,
        stage: u8,
        step: usize,
        epoch: usize,
        report: &StepReport,
    ) -> Result<(), TrainError> {
        let sums = &report.sums;
        let counts = [
            ("tokens", report.tokens),
            ("question_tokens", sums.question_tokens),
            ("answer_tokens", sums.answer_tokens),
            ("samples", report.samples),
            ("truncated", report.truncated),
        ];
        let mut object = Map::new();
        object.insert("stage".into(), json!(stage));
        object.insert("step".into(), json!(step));
        object.insert("epoch".into(), json!(epoch));
        let mut row = format!("{stage},{step},{epoch}");
        for quantity in Quantity::ALL {
            let value = quantity.of(report);
            row += &value.map_or_else(|| ",".into(), |v| format!(",{v}"));
            object.insert(
                quantity.name().into(),
                value.map_or(Value::Null, |v| json!(v)),
            );
        }
        for (name, count) in counts {
            row += &format!(",{count}");
            object.insert(name.into(), json!(count));
        }
        self.line(0, &Value::Object(object).to_string())?;
        self.line(1, &row)
    }

    fn line(&mut self, file: usize, line: &str) -> Result<(), TrainError> {
        let (path, writer) = &mut self.files[file];
        let written = writeln!(writer, "{line}").and_then(|()| writer.flush());
        written.map_err(|e| TrainError::io(&*path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::LossSums;

    #[test]
    fn both_files_hold_the_same_and_are_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let report = StepReport {
            loss: 1.5,
            sums: LossSums {
                answer: 3.0,
                answer_tokens: 2,
                ..LossSums::default()
            },
            ..StepReport::default()
        };
        for stage in [1, 2] {
            LossLog::open(dir.path())
                .unwrap()
                .write(stage, 7, 1, &report)
                .unwrap();
        }
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let json: Value = serde_json::from_str(read("log.jsonl").lines().last().unwrap()).unwrap();
        assert_eq!(
            (&json["loss"], &json["loss_answer"]),
            (&json!(1.5), &json!(1.5))
        );
        assert!(json["loss_question"].is_null());
        let csv = read("log.csv");
        assert_eq!(csv.lines().count(), 3);
        let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
        for line in csv.lines().skip(1) {
            assert_eq!(line.split(',').count(), head.len());
            assert!(line.contains("7,1,1.5,,1.5,"), "{line}");
        }
    }
}
