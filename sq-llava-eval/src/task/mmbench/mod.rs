//! MMBench and MMBench-CN: a table of multiple-choice questions with its pictures; accuracy, and
//! circular accuracy, where a question counts if it is answered rightly however its options are
//! moved; the upload.

use std::collections::BTreeMap;
use std::path::Path;

use rust_xlsxwriter::{DocProperties, ExcelDateTime, Workbook, XlsxError};

use super::Task;
use crate::EvalError;
use crate::answer::Answer;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::problem::ProblemKind;
use crate::question::{
    ImageRef, LETTER_ANSWER, Question, QuestionId, QuestionOptions, Questions, Round,
};
use crate::report::{Report, share};
use crate::submission::SubmissionFile;
use crate::table::{LETTERS, Row, Table};

/// Name of the upload.
const UPLOAD: &str = "mmbench_upload.xlsx";

/// Asks for the option's letter alone, in Chinese.
const LETTER_ANSWER_CN: &str = "请直接回答选项字母。";

/// Columns that the upload leaves out.
const LEFT_OUT: [&str; 6] = [
    "hint",
    "category",
    "source",
    "image",
    "comment",
    "l2-category",
];

/// Position of the upload's column `prediction`, counted from 0 (behind the options).
const PREDICTION: usize = 6;

/// Copies of a question in the table have indices this far apart.
const COPY: i64 = 1_000_000;

/// MMBench in its two languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MmBench {
    /// MMBench.
    English,
    /// MMBench-CN.
    Chinese,
}

impl Task for MmBench {
    fn name(&self) -> &'static str {
        match self {
            Self::English => "mmbench",
            Self::Chinese => "mmbench-cn",
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::English => "MMBench",
            Self::Chinese => "MMBench-CN",
        }
    }

    fn layout(&self) -> Option<Layout> {
        let layout = match self {
            Self::English => Layout {
                folders: &["mmbench"],
                questions: &[
                    "mmbench_dev_20230712.tsv",
                    "mmbench_dev_en*.tsv",
                    "mmbench_test_en*.tsv",
                ],
                images: &[],
                annotations: &[],
            },
            Self::Chinese => Layout {
                folders: &["mmbench_cn", "mmbench-cn", "mmbench"],
                questions: &["mmbench_dev_cn*.tsv", "mmbench_test_cn*.tsv"],
                images: &[],
                annotations: &[],
            },
        };
        Some(layout)
    }

    fn read(&self, files: &Files, options: &QuestionOptions) -> Result<Questions, EvalError> {
        let table = Table::open(&files.questions)?;
        let letter_answer = options.letter.then_some(match self {
            Self::English => LETTER_ANSWER,
            Self::Chinese => LETTER_ANSWER_CN,
        });
        let asked = table.rows().iter().enumerate().flat_map(|(position, row)| {
            let rounds = match options.all_rounds {
                true => row.options.len(),
                false => 1,
            };
            (0..rounds).map(move |round| question(row, position, round, letter_answer))
        });
        let asked: Vec<Question> = asked.collect();
        let malformed = table.malformed().to_vec();
        let mut questions = Questions::of_table(files, table);
        for (row, reason) in malformed {
            let place = format!("row {row}");
            questions
                .problems
                .add(ProblemKind::MalformedQuestion, place, reason);
        }
        for question in asked {
            questions.push(question);
        }
        Ok(questions)
    }

    fn has_references(&self) -> bool {
        false
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        _references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        score(table(matched)?, matched, report);
        Ok(())
    }

    fn submit(
        &self,
        matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        upload(table(matched)?, matched)
    }
}

fn table<'a>(matched: &Matched<'a>) -> Result<&'a Table, EvalError> {
    let questions = matched.questions;
    let missing = || EvalError::benchmark(&questions.path, "is no MMBench table");
    questions.table().ok_or_else(missing)
}

/// A row in one of its rounds; `letter_answer` asks for a letter alone.
fn question(row: &Row, position: usize, round: usize, letter_answer: Option<&str>) -> Question {
    let moved = |list: &[String]| -> Vec<String> {
        let mut list = list.to_vec();
        list.rotate_left(round);
        list
    };
    let options = moved(&row.options);
    let letters: Vec<String> = LETTERS.iter().map(|l| (*l).to_owned()).collect();
    let option_char = moved(&letters[..options.len()]);
    let asked = row.hint.iter().chain(&row.question);
    let shown = LETTERS.iter().zip(&options);
    let lines: Vec<String> = asked
        .cloned()
        .chain(shown.map(|(letter, option)| format!("{letter}. {option}")))
        .collect();
    let prompt = lines.join("\n");
    let text = match letter_answer {
        Some(wanted) => format!("{prompt}\n{wanted}"),
        None => prompt.clone(),
    };
    Question {
        position,
        id: QuestionId::Number(row.index),
        image: Some(ImageRef::Row(position)),
        prompt,
        text,
        category: row.category.clone(),
        round: Some(Round {
            number: round as u32,
            options,
            option_char,
        }),
    }
}

/// Place of the option that an answer names: its letter, alone or followed by `.`, `)`, `:` or a
/// space, in brackets or not; or the option's own text.
fn choice(text: &str, options: &[String]) -> Option<usize> {
    let text = text.trim();
    if let Some(place) = options.iter().position(|option| option.trim() == text) {
        return Some(place);
    }
    let bare = text.strip_prefix('(').unwrap_or(text);
    let place = LETTERS
        .iter()
        .take(options.len())
        .position(|letter| bare.starts_with(letter))?;
    let after = bare[1..].chars().next();
    // "A dog" is a sentence, not a letter, unless it is that option.
    let ends = match after {
        None | Some('.' | ')' | ':' | ',') => true,
        Some(' ') => bare[1..].trim() == options[place].trim(),
        _ => false,
    };
    ends.then_some(place)
}

/// The letter in the table of the option that an answer names.
fn letter<'a>(answer: &Answer, round: &'a Round) -> Option<&'a str> {
    let place = choice(&answer.text, &round.options)?;
    round.option_char.get(place).map(String::as_str)
}

fn score(table: &Table, matched: &Matched<'_>, report: &mut Report) {
    if table.rows().iter().all(|row| row.answer.is_none()) {
        report.note("the table has no answers (a test split): upload the file to the server");
        return;
    }
    let (mut right, mut count) = (0, 0);
    // For each question, whether all its presentations were answered rightly, and their number.
    let mut circles: BTreeMap<i64, (bool, usize)> = BTreeMap::new();
    for (question, answer) in &matched.pairs {
        let row = &table.rows()[question.position];
        let (Some(truth), Some(round)) = (&row.answer, &question.round) else {
            let place = format!("question {}", question.id);
            let reason = "the table has no answer; it is not scored";
            report
                .problems
                .add(ProblemKind::BadReference, place, reason);
            continue;
        };
        let named = answer.and_then(|answer| letter(answer, round));
        if let (Some(answer), None) = (answer, named) {
            report.problems.add(
                ProblemKind::UnclearAnswer,
                format!("question {}", question.id),
                format!("\"{}\" names no option; it counts as wrong", answer.text),
            );
        }
        let hit = named.is_some_and(|named| truth.trim().eq_ignore_ascii_case(named));
        if row.index < COPY && round.number == 0 {
            right += usize::from(hit);
            count += 1;
        }
        let (all, presentations) = circles.entry(row.index % COPY).or_insert((true, 0));
        *all &= hit;
        *presentations += 1;
    }
    report.percent("accuracy", share(right, count), count);
    if circles
        .values()
        .any(|(_, presentations)| *presentations > 1)
    {
        let all = circles.values().filter(|(all, _)| *all).count();
        let name = "circular accuracy";
        report.percent(name, share(all, circles.len()), circles.len());
        // The server's number is the circular one.
        report.lead(name);
    }
}

/// The upload: the table's columns without those the server does not want, and `prediction`
/// behind the options. A question without an answer has an empty cell.
fn upload(table: &Table, matched: &Matched<'_>) -> Result<Vec<SubmissionFile>, EvalError> {
    // As the official script: of several rounds the last one counts.
    let mut predictions = vec![""; table.rows().len()];
    for (question, answer) in matched.answered() {
        predictions[question.position] = &answer.text;
    }
    let bytes = workbook(table, &predictions)
        .map_err(|error| EvalError::benchmark(Path::new(UPLOAD), error.to_string()))?;
    Ok(SubmissionFile::one(UPLOAD, bytes))
}

fn workbook(table: &Table, predictions: &[&str]) -> Result<Vec<u8>, XlsxError> {
    let mut workbook = Workbook::new();
    // The same answers give the same bytes, whenever they are written.
    let date = ExcelDateTime::from_ymd(2024, 1, 1)?;
    workbook.set_properties(&DocProperties::new().set_creation_datetime(&date));
    let sheet = workbook.add_worksheet();
    sheet.set_name("Sheet1")?;
    let kept: Vec<(usize, &str)> = table
        .columns()
        .iter()
        .map(String::as_str)
        .enumerate()
        .filter(|(_, name)| !LEFT_OUT.contains(name))
        .collect();
    let mut header: Vec<&str> = kept.iter().map(|(_, name)| *name).collect();
    let at = PREDICTION.min(header.len());
    header.insert(at, "prediction");
    for (column, name) in header.iter().enumerate() {
        sheet.write_string(0, column as u16, *name)?;
    }
    for (number, (row, prediction)) in table.rows().iter().zip(predictions).enumerate() {
        let fields = kept.iter().map(|(column, _)| row.fields[*column].as_str());
        let mut cells: Vec<&str> = fields.collect();
        cells.insert(at, prediction);
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

#[cfg(test)]
mod tests;
