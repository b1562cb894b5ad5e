//! Tables of questions: tab-separated rows that hold their pictures as base64, as MMBench has them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use csv::StringRecord;

use crate::EvalError;
use sq_llava_data::{DataError, files};

/// Letters of the options, and names of their columns.
pub(crate) const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// The column of pictures.
const IMAGE: &str = "image";

/// A shorter image field is the index of the row that holds the picture.
const MIN_IMAGE: usize = 64;

/// Base64 as people have it: padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A row without its picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Number of the question; copies with moved options are a million apart.
    pub(crate) index: i64,
    /// The options, up to the first that is absent.
    pub(crate) options: Vec<String>,
    /// The right letter, where the table says.
    pub(crate) answer: Option<String>,
    /// Kind of the question.
    pub(crate) category: Option<String>,
    /// The question.
    pub(crate) question: Option<String>,
    /// Text before it.
    pub(crate) hint: Option<String>,
    /// All fields but the image.
    pub(crate) fields: Vec<String>,
    at: csv::Position,
}

/// The table: text in memory, pictures read when they are asked for.
#[derive(Debug)]
pub(crate) struct Table {
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
    pub(crate) fn open(path: &Path) -> Result<Self, EvalError> {
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
        for needed in ["index", "question", "A", "B", IMAGE] {
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
                // Bytes that are not UTF-8: the next record can still be read.
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
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Names of the columns.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Rows that are not questions, counted from 1, and why.
    pub(crate) fn malformed(&self) -> &[(usize, String)] {
        &self.malformed
    }

    /// The bytes of a row's picture.
    ///
    /// # Errors
    /// If the row cannot be read again, or its image is not base64.
    pub(crate) fn image(&self, row: usize) -> Result<Vec<u8>, EvalError> {
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
        let column = self.columns.iter().position(|name| name == IMAGE);
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
    if field(IMAGE).is_none() {
        return Err(format!("question {index} has no image"));
    }
    let fields = columns.iter().zip(record.iter()).map(|(name, text)| {
        // Pictures are read again when they are asked for.
        let held = name != IMAGE;
        if held { text.to_owned() } else { String::new() }
    });
    let owned = |name| field(name).map(str::to_owned);
    Ok(Row {
        index,
        options,
        answer: owned("answer"),
        category: owned("category"),
        question: owned("question"),
        hint: owned("hint"),
        fields: fields.collect(),
        // `read_record` always sets it.
        at: record
            .position()
            .cloned()
            .unwrap_or_else(csv::Position::new),
    })
}
