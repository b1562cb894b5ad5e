//! LLaVA-Bench in-the-Wild: requests to a judge that compares with reference answers.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{JudgedTask, SCORED_BY_JUDGE, Task, request_line};
use crate::EvalError;
use crate::answer::{Answer, Answers};
use crate::jsonl::{self, read_json};
use crate::layout::Layout;
use crate::matched::Matched;
use crate::protocol::Protocol;
use crate::question::QuestionId;
use crate::report::Report;

/// Name of the answers that count as 100, in the folder of the contexts.
const REFERENCE: &str = "answers_gpt4.jsonl";

/// LLaVA-Bench in-the-Wild.
#[derive(Debug)]
pub struct LlavaBench;

impl Task for LlavaBench {
    fn name(&self) -> &'static str {
        "llava-bench"
    }

    fn title(&self) -> &'static str {
        "LLaVA-Bench (Wild)"
    }

    fn crops(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Released
    }

    fn layout(&self) -> Option<Layout> {
        Some(Layout {
            folders: &["llava-bench-in-the-wild", "llava-bench"],
            questions: &["questions.jsonl"],
            images: &["images"],
            annotations: &["context.jsonl"],
        })
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

    fn judged(&self) -> Option<&dyn JudgedTask> {
        Some(self)
    }
}

impl JudgedTask for LlavaBench {
    fn annotations(&self) -> &'static str {
        "context.jsonl"
    }

    /// `rubric` is the rule file (`rule.json`); the reference answers are in the
    /// folder of the contexts. The
    /// first line of the judge's reply is two scores.
    fn requests(
        &self,
        matched: &Matched<'_>,
        rubric: &Path,
        annotations: &Path,
    ) -> Result<Vec<String>, EvalError> {
        let (rules, context) = (rubric, annotations);
        let reference = &context.with_file_name(REFERENCE);
        let contexts = read_contexts(context)?;
        let rules_by_category: HashMap<String, Value> = read_json(rules)?;
        let first = Answers::read(reference)?;
        let references: HashMap<String, &Answer> = first
            .list
            .iter()
            .map(|answer| (answer.question_id.to_string(), answer))
            .collect();
        let mut requests = Vec::new();
        for (index, (question, answer)) in matched.pairs.iter().enumerate() {
            let Some(answer) = answer else {
                continue;
            };
            let lacks = |path: &Path, what: String| {
                let reason = format!("lacks {what} (question {})", question.id);
                EvalError::benchmark(path, reason)
            };
            let image = question.image_file().unwrap_or_default();
            let described = contexts
                .get(image)
                .ok_or_else(|| lacks(context, format!("the image {image}")))?;
            let given = references
                .get(&question.id.to_string())
                .ok_or_else(|| lacks(reference, "an answer".into()))?;
            let category = format!(
                "llava_bench_{}",
                question.category.as_deref().unwrap_or_default()
            );
            let rule = rules_by_category
                .get(&category)
                .and_then(|rule| Rule::deserialize(rule).ok())
                .ok_or_else(|| lacks(rules, format!("a rule {category} with prompt and role")))?;
            let role = &rule.role;
            requests.push(request_line(&ReviewRequest {
                id: index + 1,
                question_id: question.id.clone(),
                answer1_id: given.answer_id.clone(),
                answer2_id: answer.answer_id.clone(),
                category,
                content: format!(
                    "[Context]\n{described}\n\n[Question]\n{}\n\n\
                     [{role} 1]\n{}\n\n[End of {role} 1]\n\n\
                     [{role} 2]\n{}\n\n[End of {role} 2]\n\n\
                     [System]\n{}\n\n",
                    question.prompt, given.text, answer.text, rule.prompt
                ),
            })?);
        }
        Ok(requests)
    }
}

/// What each picture shows, by its name.
fn read_contexts(context: &Path) -> Result<HashMap<String, String>, EvalError> {
    let mut contexts = HashMap::new();
    jsonl::for_each(context, |number, bytes| {
        let found: Context = serde_json::from_slice(bytes)
            .map_err(|error| EvalError::benchmark(context, format!("line {number}: {error}")))?;
        let text = match found.caption {
            Captions::One(text) => text,
            Captions::Many(list) => list.join("\n"),
        };
        contexts.insert(found.image, text);
        Ok(())
    })?;
    Ok(contexts)
}

/// A description of a picture, in words, for a judge that sees none.
#[derive(Debug, Deserialize)]
struct Context {
    image: String,
    caption: Captions,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Captions {
    One(String),
    Many(Vec<String>),
}

/// How one category is judged, from the rule file.
#[derive(Debug, Deserialize)]
struct Rule {
    /// What the judge is to do.
    prompt: String,
    /// What the two answers are called.
    role: String,
}

/// One request to a judge; the first line of its reply is two scores.
#[derive(Serialize)]
struct ReviewRequest {
    /// Counted from 1.
    id: usize,
    /// Id of the question.
    question_id: QuestionId,
    /// Id of the reference's answer.
    answer1_id: Value,
    /// Id of our answer.
    answer2_id: Value,
    /// `llava_bench_conv`, `llava_bench_detail` or `llava_bench_complex`.
    category: String,
    /// The whole message.
    content: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::fixture::Fixture;

    #[test]
    fn llava_bench_requests_compare_with_the_reference() {
        let fixture = Fixture::new(&LlavaBench, "questions.jsonl")
            .lines(
                "questions.jsonl",
                &[json!({"question_id": 0, "image": "001.jpg", "category": "conv", "text": "Where?"})],
            )
            .lines(
                "context.jsonl",
                &[json!({"id": 1, "image": "001.jpg", "caption": "A hill."})],
            )
            .lines(
                REFERENCE,
                &[json!({"question_id": 0, "text": "Hawaii.", "answer_id": "g1"})],
            )
            .json(
                "rule.json",
                &json!({"llava_bench_conv": {"role": "Assistant", "prompt": "Judge."}}),
            );
        let questions = fixture.questions();
        let given = fixture.answers(&questions, |_| Some("Oahu.".into()));
        let matched = fixture.task.matched(&questions, &given);
        let context = fixture.path("context.jsonl");
        let make = |rules: &str| LlavaBench.requests(&matched, &fixture.path(rules), &context);
        let requests = make("rule.json").unwrap();
        let request: Value = serde_json::from_str(&requests[0]).unwrap();
        assert_eq!(request["answer1_id"], "g1");
        assert_eq!(
            request["content"],
            "[Context]\nA hill.\n\n[Question]\nWhere?\n\n[Assistant 1]\nHawaii.\n\n\
             [End of Assistant 1]\n\n[Assistant 2]\nOahu.\n\n[End of Assistant 2]\n\n\
             [System]\nJudge.\n\n"
        );
        std::fs::write(fixture.path("none.json"), "{}").unwrap();
        let error = make("none.json").unwrap_err().to_string();
        assert!(error.contains("a rule llava_bench_conv"), "{error}");
    }
}
