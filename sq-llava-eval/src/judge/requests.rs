//! Benchmarks that a language model judges: reading the requests, its replies, and the sums.
//!
//! MM-Vet's judge gives each answer a number from 0 to 1. LLaVA-Bench's gives two numbers from 1
//! to 10, of the reference answer and of ours, on the first line of its reply.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::EvalError;
use sq_llava_data::files;

/// What a judge is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// One number from 0 to 1 (MM-Vet).
    Grade,
    /// Two numbers from 1 to 10, the reference's first (LLaVA-Bench).
    Pair,
}

/// A message to a judge.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeRequest {
    /// Id of the question.
    pub id: String,
    /// The message.
    pub content: String,
    /// What the judge is to say.
    pub verdict: Verdict,
    /// Capabilities of the question, or its category.
    pub groups: Vec<String>,
    /// All fields of the line.
    pub fields: Map<String, Value>,
}

/// Reads requests, one JSON object a line: `content`, an id (`id` or `question_id`), and
/// `capability` (a list; MM-Vet) or `category` (LLaVA-Bench).
///
/// # Errors
/// If the file cannot be read, or a line is not a request or repeats an id; the message names it.
pub fn read_requests(path: &Path) -> Result<Vec<JudgeRequest>, EvalError> {
    let text = files::read_to_string(path)?;
    let mut requests: Vec<JudgeRequest> = vec![];
    let mut ids = std::collections::HashSet::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let fault = |reason: String| EvalError::Judge {
            path: path.to_path_buf(),
            line: number + 1,
            reason,
        };
        let fields: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| fault(e.to_string()))?;
        let request = request(fields).map_err(fault)?;
        if !ids.insert(request.id.clone()) {
            return Err(fault(format!("the id {:?} stands there twice", request.id)));
        }
        requests.push(request);
    }
    Ok(requests)
}

fn request(fields: Map<String, Value>) -> Result<JudgeRequest, String> {
    let content = fields.get("content").and_then(Value::as_str);
    let content = content.ok_or("no text \"content\"")?.to_string();
    // LLaVA-Bench's lines have both; there `id` only counts them.
    let id = match fields.get("question_id").or(fields.get("id")) {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => return Err("no \"question_id\" or \"id\"".into()),
    };
    let (verdict, groups) = match (fields.get("capability"), fields.get("category")) {
        (Some(Value::Array(list)), _) => {
            let names = list.iter().map(|name| Some(name.as_str()?.to_string()));
            let names: Option<Vec<String>> = names.collect();
            (Verdict::Grade, names.ok_or("a capability is no text")?)
        }
        (None, Some(Value::String(category))) => (Verdict::Pair, vec![category.clone()]),
        _ => return Err("neither a list \"capability\" nor a text \"category\"".into()),
    };
    Ok(JudgeRequest {
        id,
        content,
        verdict,
        groups,
        fields,
    })
}

impl Verdict {
    /// The numbers of a reply; `None` if it does not give them.
    pub fn read(self, reply: &str) -> Option<Vec<f64>> {
        match self {
            Self::Grade => {
                let first = reply.split_whitespace().next()?;
                let grade: f64 = first.trim_end_matches(['.', ',']).parse().ok()?;
                (0.0..=1.0).contains(&grade).then(|| vec![grade])
            }
            Self::Pair => {
                let line = reply.trim_start().lines().next()?.replace(',', " ");
                let numbers: Option<Vec<f64>> =
                    line.split_whitespace().map(|n| n.parse().ok()).collect();
                let inside = |list: &Vec<f64>| list.iter().all(|n| (0.0..=10.0).contains(n));
                numbers.filter(|list| list.len() == 2 && inside(list))
            }
        }
    }
}

/// A request with what the judge said in each run.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged<'a> {
    /// The request.
    pub request: &'a JudgeRequest,
    /// Numbers of each run; `None` where no reply gave them.
    pub numbers: Vec<Option<Vec<f64>>>,
}

/// Sums of a group of questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgeRow {
    /// `all`, a capability, several joined by `_`, or a category.
    pub group: String,
    /// Questions with a verdict.
    pub questions: usize,
    /// Grades: their mean × 100. Pairs: our mean over the reference's × 100; `None` where the
    /// reference has nothing but zeros.
    pub score: Option<f64>,
    /// Pairs: mean of the reference's numbers × 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<f64>,
    /// Pairs: mean of ours × 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours: Option<f64>,
}

/// Sums over all questions, then over each group by name. Several runs of a question count as
/// their mean; questions without a verdict are left out.
pub fn sums(judged: &[Judged<'_>]) -> Vec<JudgeRow> {
    let mut groups: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    let mut all = vec![];
    for one in judged {
        let runs: Vec<&Vec<f64>> = one.numbers.iter().flatten().collect();
        let Some(first) = runs.first() else {
            continue;
        };
        let mean = |i: usize| runs.iter().map(|run| run[i]).sum::<f64>() / runs.len() as f64;
        let means: Vec<f64> = (0..first.len()).map(mean).collect();
        let mut names = one.request.groups.clone();
        if names.len() > 1 {
            names.push(names.join("_"));
        }
        for name in names {
            groups.entry(name).or_default().push(means.clone());
        }
        all.push(means);
    }
    if all.is_empty() {
        return vec![];
    }
    let groups = groups.into_iter().map(|(name, list)| row(name, &list));
    std::iter::once(row("all".into(), &all))
        .chain(groups)
        .collect()
}

fn row(group: String, list: &[Vec<f64>]) -> JudgeRow {
    let mean = |i: usize| list.iter().map(|n| n[i]).sum::<f64>() / list.len() as f64;
    let pair = list.iter().all(|numbers| numbers.len() == 2);
    let (reference, ours) = match pair {
        true => (Some(10.0 * mean(0)), Some(10.0 * mean(1))),
        false => (None, None),
    };
    JudgeRow {
        group,
        questions: list.len(),
        score: match pair {
            true => (mean(0) > 0.0).then(|| 100.0 * mean(1) / mean(0)),
            false => Some(100.0 * mean(0)),
        },
        reference,
        ours,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Vec<JudgeRequest>, EvalError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("requests.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        read_requests(&path)
    }

    const GRADES: [&str; 3] = [
        r#"{"id": "v1_0", "capability": ["ocr", "math"], "content": "a"}"#,
        r#"{"id": "v1_1", "capability": ["ocr"], "content": "b"}"#,
        r#"{"id": "v1_2", "capability": ["rec"], "content": "c"}"#,
    ];

    #[test]
    fn replies_are_numbers_or_nothing() {
        for (reply, grade) in [
            ("0.5", Some(0.5)),
            (" 1.0\n", Some(1.0)),
            ("0.", Some(0.0)),
            ("1.5", None),
            ("The score is 0.5", None),
            ("", None),
        ] {
            assert_eq!(
                Verdict::Grade.read(reply),
                grade.map(|g| vec![g]),
                "{reply:?}"
            );
        }
        for (reply, pair) in [
            ("8 7\nBecause …", Some([8.0, 7.0])),
            ("9, 6.5", Some([9.0, 6.5])),
            ("8 out of 10", None),
            ("8", None),
            ("8 11", None),
        ] {
            assert_eq!(Verdict::Pair.read(reply), pair.map(Vec::from), "{reply:?}");
        }
    }

    #[test]
    fn grades_are_summed_by_capability() {
        let requests = read(&GRADES).unwrap();
        let numbers = [
            vec![Some(vec![1.0]), Some(vec![0.5])],
            vec![Some(vec![0.25])],
            vec![None],
        ];
        let judged: Vec<Judged> = requests
            .iter()
            .zip(numbers)
            .map(|(request, numbers)| Judged { request, numbers })
            .collect();
        let rows = sums(&judged);
        let found: Vec<(&str, usize, f64)> = rows
            .iter()
            .map(|row| (row.group.as_str(), row.questions, row.score.unwrap()))
            .collect();
        // The first is 0.75 over its two runs; the third has no verdict.
        assert_eq!(
            found,
            [
                ("all", 2, 50.0),
                ("math", 1, 75.0),
                ("ocr", 2, 50.0),
                ("ocr_math", 1, 75.0)
            ]
        );
    }

    #[test]
    fn pairs_are_relative_to_the_reference() {
        let requests = read(&[
            r#"{"id": 1, "question_id": 5, "category": "llava_bench_conv", "content": "a"}"#,
            r#"{"id": 2, "question_id": 6, "category": "llava_bench_detail", "content": "b"}"#,
        ])
        .unwrap();
        assert_eq!(
            (requests[0].id.as_str(), requests[0].verdict),
            ("5", Verdict::Pair)
        );
        let numbers = [vec![8.0, 6.0], vec![10.0, 9.0]];
        let judged: Vec<Judged> = requests
            .iter()
            .zip(numbers)
            .map(|(request, n)| Judged {
                request,
                numbers: vec![Some(n)],
            })
            .collect();
        let rows = sums(&judged);
        assert!((rows[0].score.unwrap() - 100.0 * 15.0 / 18.0).abs() < 1e-9);
        assert_eq!((rows[0].reference, rows[0].ours), (Some(90.0), Some(75.0)));
        assert_eq!(
            (rows[1].group.as_str(), rows[1].score),
            ("llava_bench_conv", Some(75.0))
        );
        assert!(sums(&[]).is_empty());
        let nothing = [Judged {
            request: &requests[0],
            numbers: vec![Some(vec![0.0, 7.0])],
        }];
        assert_eq!(sums(&nothing)[0].score, None);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (line, word) in [
            (r#"{"id": 1, "content": "a"}"#, "capability"),
            (r#"{"category": "c", "content": "a"}"#, "question_id"),
            (r#"{"id": 1, "category": "c"}"#, "content"),
            ("{", "line 2"),
            (GRADES[0], "twice"),
        ] {
            let error = read(&[GRADES[0], line]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("line 2"), "{error}");
        }
    }
}
