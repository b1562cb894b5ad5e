//! LLaVA-Bench in-the-Wild: requests to a judge that compares with reference answers.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Answers, Matched, lines};
use crate::EvalError;

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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Rule {
    /// What the judge is to do.
    pub prompt: String,
    /// What the two answers are called.
    pub role: String,
}

/// One request to a judge; the first line of its reply is two scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReviewRequest {
    /// Counted from 1.
    pub id: usize,
    /// Id of the question.
    pub question_id: super::QuestionId,
    /// Id of the reference's answer.
    pub answer1_id: Value,
    /// Id of our answer.
    pub answer2_id: Value,
    /// `llava_bench_conv`, `llava_bench_detail` or `llava_bench_complex`.
    pub category: String,
    /// The whole message.
    pub content: String,
}

/// A request for each answered question. `context` is `context.jsonl`, `reference` the answers
/// that count as 100 (`answers_gpt4.jsonl`), `rules` the rule file (`rule.json`).
///
/// # Errors
/// If a file cannot be read, or lacks the context, rule or reference answer of a question.
pub fn review_requests(
    context: &Path,
    reference: &Path,
    rules: &Path,
    matched: &Matched<'_>,
) -> Result<Vec<ReviewRequest>, EvalError> {
    let mut contexts = HashMap::new();
    lines::for_each(context, |number, bytes, _| {
        let found: Context = serde_json::from_slice(bytes)
            .map_err(|error| EvalError::benchmark(context, format!("line {number}: {error}")))?;
        let text = match found.caption {
            Captions::One(text) => text,
            Captions::Many(list) => list.join("\n"),
        };
        contexts.insert(found.image, text);
        Ok(())
    })?;
    let rules_by_category: HashMap<String, Value> = lines::read_json(rules)?;
    let first = Answers::read(reference)?;
    let references: HashMap<String, &super::Answer> = first
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
        let image = super::vizwiz::image_of(question).unwrap_or_default();
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
        requests.push(ReviewRequest {
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
        });
    }
    Ok(requests)
}
