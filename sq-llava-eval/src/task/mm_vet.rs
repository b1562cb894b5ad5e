//! MM-Vet: predictions for its grader, and requests to a judge.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{JudgedTask, SCORED_BY_JUDGE, Task, own_or_jsonl, request_line};
use crate::EvalError;
use crate::jsonl::read_json;
use crate::layout::{Files, Layout};
use crate::matched::Matched;
use crate::problem::ProblemKind;
use crate::protocol::Protocol;
use crate::question::{Question, QuestionId, QuestionOptions, Questions};
use crate::report::Report;
use crate::submission::SubmissionFile;
use sq_llava_data::files;

/// Name of the predictions.
const PREDICTIONS: &str = "mm-vet_predictions.json";

/// MM-Vet.
#[derive(Debug)]
pub struct MmVet;

impl Task for MmVet {
    fn name(&self) -> &'static str {
        "mm-vet"
    }

    fn title(&self) -> &'static str {
        "MM-Vet"
    }

    fn crops(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Released
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["mm-vet", "mmvet"],
            questions: &["llava-mm-vet.jsonl", "mm-vet.json"],
            images: &["images"],
            annotations: &["mm-vet.json"],
        })
    }

    fn read(&self, files: &Files, _options: &QuestionOptions) -> Result<Questions, EvalError> {
        own_or_jsonl(files, own_questions)
    }

    fn has_references(&self) -> bool {
        false
    }

    fn score(
        &self,
        _matched: &Matched<'_>,
        _references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        report.note(SCORED_BY_JUDGE);
        Ok(())
    }

    /// `{"v1_<id>": text}`, indented by two.
    fn submit(
        &self,
        matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        let texts: Map<String, Value> = matched
            .answered()
            .map(|(question, answer)| (graded_id(&question.id), answer.text.clone().into()))
            .collect();
        let bytes = serde_json::to_vec_pretty(&texts).map_err(|source| EvalError::Json {
            path: PREDICTIONS.into(),
            source,
        })?;
        Ok(SubmissionFile::one(PREDICTIONS, bytes))
    }

    fn judged(&self) -> Option<&dyn JudgedTask> {
        Some(self)
    }
}

impl JudgedTask for MmVet {
    fn annotations(&self) -> &'static str {
        "mm-vet.json"
    }

    /// The rubric, then a row `question | truth | prediction |` that the judge ends with a number
    /// from 0 to 1.
    fn requests(
        &self,
        matched: &Matched<'_>,
        rubric: &Path,
        annotations: &Path,
    ) -> Result<Vec<String>, EvalError> {
        let rubric = files::read_to_string(rubric)?;
        let rubric = rubric.trim_end();
        let answers: HashMap<String, &str> = matched
            .answered()
            .map(|(question, answer)| (graded_id(&question.id), answer.text.as_str()))
            .collect();
        let requests = items(annotations)?.into_iter().filter_map(|(id, item)| {
            let prediction = answers.get(&graded_id(&id.as_str().into()))?;
            let truth = item
                .answer
                .replace("<AND>", " <AND> ")
                .replace("<OR>", " <OR> ");
            let row = [&item.question, &truth, *prediction, ""].join(" | ");
            Some(request_line(&GradeRequest {
                id,
                capability: item.capability,
                content: format!("{rubric}\n{row}"),
            }))
        });
        requests.collect()
    }
}

/// One question of `mm-vet.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Item {
    /// File name of its picture.
    imagename: String,
    /// The question.
    question: String,
    /// What is right; `<AND>` and `<OR>` join parts.
    answer: String,
    /// What it takes: `rec`, `ocr`, `know`, `gen`, `spat`, `math`.
    #[serde(default)]
    capability: Vec<String>,
}

/// `mm-vet.json`: the questions in order, by id (`v1_0`).
fn items(path: &Path) -> Result<Vec<(String, Item)>, EvalError> {
    let raw: Map<String, Value> = read_json(path)?;
    raw.into_iter()
        .map(|(id, value)| match serde_json::from_value(value) {
            Ok(item) => Ok((id, item)),
            Err(error) => Err(EvalError::benchmark(path, format!("{id}: {error}"))),
        })
        .collect()
}

/// Questions from MM-Vet's own file; `v1_7` becomes 7, as in LLaVA's.
fn own_questions(files: &Files) -> Result<Questions, EvalError> {
    let mut questions = Questions::new(files);
    let raw: Map<String, Value> = read_json(&files.questions)?;
    for (position, (id, value)) in raw.into_iter().enumerate() {
        match serde_json::from_value::<Item>(value) {
            Ok(item) => {
                let bare = id.strip_prefix("v1_").unwrap_or(&id);
                let number = bare.parse().map(QuestionId::Number);
                let id = number.unwrap_or_else(|_| bare.into());
                questions.push(Question::about(position, id, item.imagename, item.question));
            }
            Err(error) => questions.problems.add(
                ProblemKind::MalformedQuestion,
                format!("question {id}"),
                error.to_string(),
            ),
        }
    }
    Ok(questions)
}

/// The grader's name of a question.
fn graded_id(id: &QuestionId) -> String {
    let id = id.to_string();
    if id.starts_with("v1_") {
        id
    } else {
        format!("v1_{id}")
    }
}

/// One request to a judge.
#[derive(Serialize)]
struct GradeRequest {
    /// Id of the question (`v1_7`).
    id: String,
    /// What the question takes, for the sums.
    capability: Vec<String>,
    /// The whole message.
    content: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::fixture::{Fixture, text_of};

    #[test]
    fn own_questions_are_asked_uploaded_and_judged() {
        let vet = Fixture::new(&MmVet, "mm-vet.json").json(
            "mm-vet.json",
            &json!({"v1_3": {"imagename": "v.png", "question": "What is x?", "answer": "-1<AND>-5",
                "capability": ["math"]}}),
        );
        let questions = vet.questions();
        assert_eq!(questions.list[0].id, QuestionId::Number(3));
        let given = vet.answers(&questions, |_| Some("x = 3".into()));
        assert_eq!(
            text_of(&vet.submission(&questions, &given)),
            "{\n  \"v1_3\": \"x = 3\"\n}"
        );
        let rubric = vet.path("rubric.txt");
        std::fs::write(&rubric, "Rubric\n").unwrap();
        let matched = vet.task.matched(&questions, &given);
        let items = vet.path("mm-vet.json");
        let requests = MmVet.requests(&matched, &rubric, &items).unwrap();
        let request: Value = serde_json::from_str(&requests[0]).unwrap();
        assert_eq!(
            request,
            json!({"id": "v1_3", "capability": ["math"],
                "content": "Rubric\nWhat is x? | -1 <AND> -5 | x = 3 | "})
        );
    }
}
