//! MMBench and MMBench-CN: the table of questions with its pictures, and the upload.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use csv::StringRecord;
use rust_xlsxwriter::{DocProperties, ExcelDateTime, Workbook, XlsxError};

use super::question::{
    ImageRef, LETTER_ANSWER, Question, QuestionId, QuestionOptions, Questions, Round,
};
use super::{Matched, ProblemKind, SubmissionFile};
use crate::EvalError;
use sq_llava_data::{DataError, files};

/// Name of the upload.
pub const UPLOAD: &str = "mmbench_upload.xlsx";

/// Asks for the option's letter alone, in Chinese.
pub const LETTER_ANSWER_CN: &str = "请直接回答选项字母。";

/// Letters of the options.
pub const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Columns that the upload leaves out.
const LEFT_OUT: [&str; 6] = [
    "hint",
    "category",
    "source",
    "image",
    "comment",
    "l2-category",
];

/// Where the upload's column `prediction` stands, counted from 0 (behind the options).
const PREDICTION: usize = 6;

/// A shorter image field is the index of the row that holds the picture.
const MIN_IMAGE: usize = 64;

/// Base64 as people have it: padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A row without its picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Number of the question; copies with moved options are a million apart.
    pub index: i64,
    /// The options, up to the first that is absent.
    pub options: Vec<String>,
    /// The right letter, where the table says.
    pub answer: Option<String>,
    /// Kind of the question.
    pub category: Option<String>,
    question: Option<String>,
    hint: Option<String>,
    kept: Vec<String>,
    at: csv::Position,
}

/// The table: text in memory, pictures read when they are asked for.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    columns: Vec<String>,
    reader: Mutex<csv::Reader<File>>,
    rows: Vec<Row>,
    malformed: Vec<(usize, String)>,
}

impl Table {
    /// Reads a table.
    ///
    /// # Errors
    /// If it cannot be read or lacks a column.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let fault = |error: csv::Error| EvalError::benchmark(path, error.to_string());
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(b'\t')
            .flexible(true)
            .from_reader(files::open(path)?);
        let columns: Vec<String> = reader
            .headers()
            .map_err(fault)?
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').to_owned())
            .collect();
        for needed in ["index", "question", "A", "B", "image"] {
            if !columns.iter().any(|name| name == needed) {
                let reason = format!("has no column {needed}: this is no MMBench table");
                return Err(EvalError::benchmark(path, reason));
            }
        }
        let (mut rows, mut malformed) = (Vec::new(), Vec::new());
        let mut record = StringRecord::new();
        for line in 1.. {
            match reader.read_record(&mut record) {
                Ok(false) => break,
                Ok(true) => match row(&columns, &record) {
                    Ok(row) => rows.push(row),
                    Err(reason) => malformed.push((line, reason)),
                },
                // Bytes that are no text: the next record can still be read.
                Err(error) if matches!(error.kind(), csv::ErrorKind::Utf8 { .. }) => {
                    malformed.push((line, error.to_string()));
                }
                Err(error) => return Err(fault(error)),
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            columns,
            reader: Mutex::new(reader),
            rows,
            malformed,
        })
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Puts the questions of the table on the list.
    pub(super) fn questions(
        &self,
        options: &QuestionOptions,
        chinese: bool,
        questions: &mut Questions,
    ) {
        for (row, reason) in &self.malformed {
            let place = format!("row {row}");
            questions
                .problems
                .add(ProblemKind::MalformedQuestion, place, reason.clone());
        }
        for (position, row) in self.rows.iter().enumerate() {
            let rounds = if options.all_rounds {
                row.options.len()
            } else {
                1
            };
            for round in 0..rounds {
                questions.push(row.question(position, round, options.letter, chinese));
            }
        }
    }

    /// The bytes of a row's picture.
    ///
    /// # Errors
    /// If the row cannot be read again, or its image is no base64.
    pub fn image(&self, row: usize) -> Result<Vec<u8>, EvalError> {
        let mut field = self.image_field(row)?;
        if field.len() < MIN_IMAGE
            && let Ok(index) = field.parse::<i64>()
            && let Some(other) = self.rows.iter().position(|row| row.index == index)
            && other != row
        {
            field = self.image_field(other)?;
        }
        let faulty = |error| DataError::Image {
            name: format!("of question {}", self.rows[row].index),
            reason: format!("no base64: {error}"),
        };
        Ok(decoded(&field).map_err(faulty)?)
    }

    fn image_field(&self, row: usize) -> Result<String, EvalError> {
        let fault = |error: csv::Error| EvalError::benchmark(&self.path, error.to_string());
        let at = self.rows[row].at.clone();
        // A panic while the lock was held leaves only the position behind, and we set that.
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.seek(at).map_err(fault)?;
        let mut record = StringRecord::new();
        reader.read_record(&mut record).map_err(fault)?;
        let column = self.columns.iter().position(|name| name == "image");
        let field = column.and_then(|column| record.get(column));
        Ok(field.unwrap_or_default().to_owned())
    }
}

/// The bytes of base64, which may have line breaks and begin as a `data:` URL.
fn decoded(field: &str) -> Result<Vec<u8>, base64::DecodeError> {
    let field = field.trim();
    let url = field
        .get(..5)
        .filter(|start| start.eq_ignore_ascii_case("data:"));
    let coded = match url.and_then(|_| field.split_once(',')) {
        Some((_, coded)) => coded,
        None => field,
    };
    match coded.bytes().any(|byte| byte.is_ascii_whitespace()) {
        true => {
            let bytes = coded.bytes().filter(|byte| !byte.is_ascii_whitespace());
            BASE64.decode(bytes.collect::<Vec<u8>>())
        }
        false => BASE64.decode(coded),
    }
}

fn row(columns: &[String], record: &StringRecord) -> Result<Row, String> {
    if record.len() != columns.len() {
        return Err(format!(
            "{} fields under {} columns",
            record.len(),
            columns.len()
        ));
    }
    let field = |name: &str| {
        let column = columns.iter().position(|column| column == name)?;
        // As a table has it: "None", "N/A" and "nan" are words, and may be options.
        record.get(column).filter(|text| !text.is_empty())
    };
    let index = field("index").unwrap_or_default();
    let index = index
        .parse()
        .map_err(|_| format!("index \"{index}\" is no number"))?;
    let options: Vec<String> = LETTERS
        .iter()
        .map_while(|letter| field(letter).map(str::to_owned))
        .collect();
    if options.is_empty() {
        return Err(format!("question {index} has no options"));
    }
    if field("question").is_none() && field("hint").is_none() {
        return Err(format!("question {index} has no text"));
    }
    if field("image").is_none() {
        return Err(format!("question {index} has no image"));
    }
    let kept = columns
        .iter()
        .zip(record.iter())
        .filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()))
        .map(|(_, text)| text.to_owned())
        .collect();
    let owned = |name| field(name).map(str::to_owned);
    Ok(Row {
        index,
        options,
        answer: owned("answer"),
        category: owned("category"),
        question: owned("question"),
        hint: owned("hint"),
        kept,
        // `read_record` always sets it.
        at: record
            .position()
            .cloned()
            .unwrap_or_else(csv::Position::new),
    })
}

impl Row {
    fn question(&self, position: usize, round: usize, letter: bool, chinese: bool) -> Question {
        let moved = |list: &[String]| -> Vec<String> {
            let mut list = list.to_vec();
            list.rotate_left(round);
            list
        };
        let options = moved(&self.options);
        let letters: Vec<String> = LETTERS.iter().map(|l| (*l).to_owned()).collect();
        let option_char = moved(&letters[..options.len()]);
        let asked = self.hint.iter().chain(&self.question);
        let shown = LETTERS.iter().zip(&options);
        let lines: Vec<String> = asked
            .cloned()
            .chain(shown.map(|(letter, option)| format!("{letter}. {option}")))
            .collect();
        let prompt = lines.join("\n");
        let text = match (letter, chinese) {
            (false, _) => prompt.clone(),
            (true, false) => format!("{prompt}\n{LETTER_ANSWER}"),
            (true, true) => format!("{prompt}\n{LETTER_ANSWER_CN}"),
        };
        Question {
            position,
            id: QuestionId::Number(self.index),
            image: Some(ImageRef::Row(position)),
            prompt,
            text,
            category: self.category.clone(),
            round: Some(Round {
                number: round as u32,
                options,
                option_char,
            }),
        }
    }
}

/// The upload: the table's columns without those the server does not want, and `prediction`
/// behind the options. A question without an answer has an empty cell.
pub(super) fn submission(
    questions: &Questions,
    matched: &Matched<'_>,
) -> Result<SubmissionFile, EvalError> {
    let Some(table) = questions.table() else {
        return Err(EvalError::benchmark(&questions.path, "is no MMBench table"));
    };
    // As the official script: of several rounds the last one stands.
    let mut predictions = vec![""; table.rows.len()];
    for (question, answer) in matched.answered() {
        predictions[question.position] = &answer.text;
    }
    let bytes = workbook(table, &predictions)
        .map_err(|error| EvalError::benchmark(Path::new(UPLOAD), error.to_string()))?;
    Ok(SubmissionFile {
        name: UPLOAD.into(),
        bytes,
    })
}

fn workbook(table: &Table, predictions: &[&str]) -> Result<Vec<u8>, XlsxError> {
    let mut workbook = Workbook::new();
    // The same answers give the same bytes, whenever they are written.
    let date = ExcelDateTime::from_ymd(2024, 1, 1)?;
    workbook.set_properties(&DocProperties::new().set_creation_datetime(&date));
    let sheet = workbook.add_worksheet();
    sheet.set_name("Sheet1")?;
    let mut header: Vec<&str> = table
        .columns
        .iter()
        .map(String::as_str)
        .filter(|name| !LEFT_OUT.contains(name))
        .collect();
    let at = PREDICTION.min(header.len());
    header.insert(at, "prediction");
    for (column, name) in header.iter().enumerate() {
        sheet.write_string(0, column as u16, *name)?;
    }
    for (number, (row, prediction)) in table.rows.iter().zip(predictions).enumerate() {
        let mut cells: Vec<&str> = row.kept.iter().map(String::as_str).collect();
        cells.insert(at.min(cells.len()), prediction);
        for (column, (text, name)) in cells.iter().zip(&header).enumerate() {
            let (line, column) = (number as u32 + 1, column as u16);
            if *name == "index" {
                sheet.write_number(line, column, row.index as f64)?;
            } else if !text.is_empty() {
                sheet.write_string(line, column, *text)?;
            }
        }
    }
    workbook.save_to_buffer()
}
