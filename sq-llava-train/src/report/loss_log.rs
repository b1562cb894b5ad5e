//! The curves of a run: one line a step, and one a validation, as JSON lines, as CSV and as events
//! of TensorBoard.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sq_llava_data::atomic::AtomicFile;

use crate::error::TrainError;
use crate::report::metrics::Quantity;
use crate::report::samples::SAMPLES;
use crate::report::tensorboard::EventWriter;
use crate::step::report::{LoggedStep, StepReport};

/// First columns of a CSV file.
const PLACE: &str = "stage,step,epoch";

/// What the logs call δ of the sources that are followed.
pub(crate) const DELTAS: &str = "delta";

/// Which curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// Optimizer steps.
    Training,
    /// Validations.
    Validation,
}

impl Curve {
    /// Names of its two files in a run directory.
    pub fn files(self) -> [&'static str; 2] {
        match self {
            Self::Training => ["log.jsonl", "log.csv"],
            Self::Validation => ["validation.jsonl", "validation.csv"],
        }
    }

    /// Its columns.
    pub fn quantities(self) -> &'static [Quantity] {
        match self {
            Self::Training => &Quantity::TRAINING,
            Self::Validation => &Quantity::VALIDATION,
        }
    }
}

/// A column of a CSV file.
#[derive(Debug, Clone, Copy)]
enum Column {
    Of(Quantity),
    /// δ of each source that is followed.
    Deltas,
    /// Another version's; left empty.
    Unknown,
}

/// Writes a line to both files of a curve and flushes it, so that a run can be watched and a
/// killed one keeps its curve.
#[derive(Debug)]
pub struct LossLog {
    curve: Curve,
    /// The CSV file's columns behind the step's. A file that an older version began keeps its own.
    columns: Vec<Column>,
    files: [(PathBuf, BufWriter<File>); 2],
    events: Option<EventWriter>,
}

impl LossLog {
    /// Opens a log of a run directory, after the lines that are there already. Where `has_deltas`,
    /// the CSV file has a last column with δ of each source that is followed, as a JSON object.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn open(directory: &Path, curve: Curve, has_deltas: bool) -> Result<Self, TrainError> {
        let open = |name: &str| {
            let path = directory.join(name);
            let file = OpenOptions::new().create(true).append(true).open(&path);
            let file = file.map_err(|e| TrainError::io(&path, e))?;
            Ok::<_, TrainError>((path, BufWriter::new(file)))
        };
        let [json, csv] = curve.files();
        let quantities = curve.quantities().iter().map(|q| q.name());
        let names: Vec<&str> = quantities.chain(has_deltas.then_some(DELTAS)).collect();
        let header = format!("{PLACE},{}", names.join(","));
        let begun = header_of(&directory.join(csv))?;
        let columns = begun.as_deref().unwrap_or(&header);
        let columns = columns.split(',').skip(PLACE.split(',').count());
        let column = |name: &str| match curve.quantities().iter().find(|q| q.name() == name) {
            Some(quantity) => Column::Of(*quantity),
            None if name == DELTAS => Column::Deltas,
            None => Column::Unknown,
        };
        let mut log = Self {
            curve,
            columns: columns.map(column).collect(),
            files: [open(json)?, open(csv)?],
            events: None,
        };
        if begun.is_none() {
            log.line(1, &header)?;
        }
        Ok(log)
    }

    /// Writes the lines of a stage after step `done` as events too.
    ///
    /// # Errors
    /// If their file cannot be written.
    pub fn with_events(mut self, run: &Path, stage: u8, done: usize) -> Result<Self, TrainError> {
        let kind = match self.curve {
            Curve::Training => "",
            Curve::Validation => "-validation",
        };
        self.events = Some(EventWriter::open(run, stage, kind, done)?);
        Ok(self)
    }

    /// Takes back what was logged after a step; `None` takes back everything. A run that resumes
    /// from there writes those lines again.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn rewind(directory: &Path, to: Option<LoggedStep>) -> Result<(), TrainError> {
        let curves = [Curve::Training, Curve::Validation];
        let names = curves.iter().flat_map(|curve| curve.files());
        for name in names.chain([SAMPLES]) {
            let path = directory.join(name);
            if path.is_file() {
                let csv = name.ends_with(".csv");
                rewind_file(&path, csv, to).map_err(|e| TrainError::io(&path, e))?;
            }
        }
        Ok(())
    }

    /// Writes a line; steps are counted from 1.
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
        let mut object = Map::new();
        object.insert("stage".into(), json!(stage));
        object.insert("step".into(), json!(step));
        object.insert("epoch".into(), json!(epoch));
        let mut row = format!("{stage},{step},{epoch}");
        for quantity in self.curve.quantities() {
            let value = match quantity.of(report) {
                None => Value::Null,
                Some(count) if quantity.is_count() => json!(count as u64),
                Some(value) => json!(value),
            };
            object.insert(quantity.name().into(), value);
        }
        if !report.deltas.is_empty() {
            object.insert(DELTAS.into(), json!(*report.deltas));
        }
        for column in &self.columns {
            row += ",";
            row += &match column {
                Column::Of(quantity) => quantity
                    .of(report)
                    .map_or_else(String::new, |value| value.to_string()),
                Column::Deltas => quoted(&report.deltas),
                Column::Unknown => String::new(),
            };
        }
        self.line(0, &Value::Object(object).to_string())?;
        self.line(1, &row)?;
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        let quantities = self.curve.quantities().iter();
        let values = quantities.filter_map(|q| Some((q.name().to_owned(), q.of(report)?)));
        let deltas = report.deltas.iter();
        let deltas = deltas.map(|(source, &delta)| (format!("asking/delta/{source}"), delta));
        events.scalars(step, values.chain(deltas))
    }

    /// Puts what was written on the disk for good.
    ///
    /// # Errors
    /// If the system says that it is not.
    pub fn sync(&mut self) -> Result<(), TrainError> {
        for (path, writer) in &mut self.files {
            let synced = writer.get_ref().sync_data();
            synced.map_err(|e| TrainError::io(&*path, e))?;
        }
        Ok(())
    }

    fn line(&mut self, file: usize, line: &str) -> Result<(), TrainError> {
        let (path, writer) = &mut self.files[file];
        let written = writeln!(writer, "{line}").and_then(|()| writer.flush());
        written.map_err(|e| TrainError::io(&*path, e))
    }
}

/// The first line of a file that has one.
fn header_of(path: &Path) -> Result<Option<String>, TrainError> {
    let mut line = String::new();
    match File::open(path).and_then(|file| BufReader::new(file).read_line(&mut line)) {
        Ok(_) => Ok((!line.is_empty()).then(|| line.trim_end().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrainError::io(path, error)),
    }
}

/// A JSON object as a field of CSV; nothing for an empty one.
fn quoted(deltas: &BTreeMap<String, f64>) -> String {
    match deltas.is_empty() {
        true => String::new(),
        false => format!("\"{}\"", json!(deltas).to_string().replace('"', "\"\"")),
    }
}

/// Keeps the lines up to a step, in a new file that then takes the old one's place.
fn rewind_file(path: &Path, csv: bool, to: Option<LoggedStep>) -> std::io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut writer = BufWriter::new(AtomicFile::create(path)?);
    let mut line = String::new();
    let mut first = true;
    while reader.read_line(&mut line)? > 0 {
        let header = csv && std::mem::take(&mut first);
        let step = if csv {
            step_of_csv(&line)
        } else {
            step_of_json(&line)
        };
        // A line that a kill cut short has no end, and perhaps no step.
        let keep = line.ends_with('\n') && (header || (step.is_some() && step <= to));
        if !keep {
            break;
        }
        writer.write_all(line.as_bytes())?;
        line.clear();
    }
    writer.into_inner().map_err(|e| e.into_error())?.commit()
}

fn step_of_csv(line: &str) -> Option<LoggedStep> {
    let mut parts = line.split(',');
    Some(LoggedStep {
        stage: parts.next()?.parse().ok()?,
        step: parts.next()?.parse().ok()?,
    })
}

fn step_of_json(line: &str) -> Option<LoggedStep> {
    let line: Value = serde_json::from_str(line).ok()?;
    let number = |key: &str| line[key].as_u64();
    Some(LoggedStep {
        stage: u8::try_from(number("stage")?).ok()?,
        step: usize::try_from(number("step")?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::loss::LossSums;

    fn report() -> StepReport {
        StepReport {
            loss: 1.5,
            sums: LossSums {
                answer: 3.0,
                answer_tokens: 2,
                ..LossSums::default()
            },
            ..StepReport::default()
        }
    }

    fn read(dir: &tempfile::TempDir, name: &str) -> String {
        std::fs::read_to_string(dir.path().join(name)).unwrap()
    }

    #[test]
    fn both_files_hold_the_same_and_are_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        for stage in [1, 2] {
            LossLog::open(dir.path(), Curve::Training, false)
                .unwrap()
                .write(stage, 7, 1, &report())
                .unwrap();
        }
        let text = read(&dir, "log.jsonl");
        let json: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            (&json["loss"], &json["loss_answer"], &json["answer_tokens"]),
            (&json!(1.5), &json!(1.5), &json!(2))
        );
        assert!(json["loss_question"].is_null());
        let csv = read(&dir, "log.csv");
        assert_eq!(csv.lines().count(), 3);
        let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
        for line in csv.lines().skip(1) {
            assert_eq!(line.split(',').count(), head.len());
            assert!(line.contains("7,1,1.5,,1.5,"), "{line}");
        }
    }

    #[test]
    fn a_file_that_an_older_version_began_keeps_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        let old = "stage,step,epoch,loss,samples\n1,1,1,2.5,4\n";
        std::fs::write(dir.path().join("log.csv"), old).unwrap();
        let mut log = LossLog::open(dir.path(), Curve::Training, true).unwrap();
        log.write(1, 2, 1, &report()).unwrap();
        let csv = read(&dir, "log.csv");
        let last = csv.strip_prefix(old).unwrap();
        assert_eq!(last.split(',').count(), 5, "{last}");
        assert!(last.starts_with("1,2,1,"), "{last}");
    }

    #[test]
    fn delta_of_each_source_is_an_object_whatever_the_names_hold() {
        let dir = tempfile::tempdir().unwrap();
        let log = LossLog::open(dir.path(), Curve::Training, true).unwrap();
        let mut log = log.with_events(dir.path(), 2, 0).unwrap();
        let followed = StepReport {
            deltas: [("coco", 0.5), ("a \"b\", c", 0.1 + 0.2)]
                .map(|(name, delta)| (name.to_owned(), delta))
                .into_iter()
                .collect::<BTreeMap<_, _>>()
                .into(),
            ..report()
        };
        // A stage that follows nothing, and one that does.
        log.write(1, 1, 1, &report()).unwrap();
        log.write(2, 1, 1, &followed).unwrap();
        let text = read(&dir, "log.jsonl");
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(lines[0].get(DELTAS).is_none());
        let deltas = json!({"a \"b\", c": 0.1 + 0.2, "coco": 0.5});
        assert_eq!(lines[1][DELTAS], deltas);
        let csv = read(&dir, "log.csv");
        let [head, first, second] = csv.lines().collect::<Vec<_>>()[..] else {
            panic!("{csv}");
        };
        assert!(
            head.ends_with(",skipped,loss_masks,delta") && first.ends_with(",0,,"),
            "{csv}"
        );
        // RFC 4180: in a quoted field a quote is written twice.
        let field = r#","{""a \""b\"", c"":0.30000000000000004,""coco"":0.5}""#;
        assert!(second.ends_with(field), "{second}");
        let folder = dir.path().join("tensorboard/stage2");
        let events = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
        let events = std::fs::read(events.path()).unwrap();
        for tag in ["asking/delta/coco", "asking/delta/a \"b\", c"] {
            let tag = tag.as_bytes();
            assert_eq!(
                events
                    .windows(tag.len())
                    .filter(|part| *part == tag)
                    .count(),
                1
            );
        }
        // The lines without are as they were.
        assert_eq!(head.split(',').count(), first.split(',').count());
        LossLog::rewind(dir.path(), Some(LoggedStep { stage: 2, step: 1 })).unwrap();
        assert_eq!(read(&dir, "log.csv"), csv);
    }

    #[test]
    fn a_log_is_taken_back_to_a_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LossLog::open(dir.path(), Curve::Training, false).unwrap();
        for (stage, steps) in [(1, 3), (2, 4)] {
            for step in 1..=steps {
                log.write(stage, step, 1, &report()).unwrap();
            }
        }
        drop(log);
        // Killed in the middle of a line.
        for (name, half) in [("log.jsonl", "{\"stage\":2,\"st"), ("log.csv", "2,5,1,1")] {
            let path = dir.path().join(name);
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(half.as_bytes()).unwrap();
        }
        let rewind = |stage, step| {
            LossLog::rewind(dir.path(), Some(LoggedStep { stage, step })).unwrap();
        };
        rewind(2, 9);
        assert_eq!(read(&dir, "log.jsonl").lines().count(), 7);
        assert_eq!(read(&dir, "log.csv").lines().count(), 8);
        rewind(2, 2);
        assert_eq!(read(&dir, "log.jsonl").lines().count(), 5);
        assert!(
            read(&dir, "log.csv")
                .lines()
                .last()
                .unwrap()
                .starts_with("2,2,")
        );
        rewind(1, usize::MAX);
        assert_eq!(read(&dir, "log.jsonl").lines().count(), 3);
        LossLog::rewind(dir.path(), None).unwrap();
        assert_eq!(read(&dir, "log.jsonl"), "");
        assert_eq!(read(&dir, "log.csv").lines().count(), 1);
    }
}
