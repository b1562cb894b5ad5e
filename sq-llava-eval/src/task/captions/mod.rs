//! Captions of COCO, Flickr30k and Conceptual Captions; what NoCaps shares with them: references,
//! the COCO toolkit's metrics and its result file.

#[cfg(feature = "jars")]
mod jars;
mod references;

use std::path::Path;

use serde_json::{Value, json};

use super::{NOT_IN_REFERENCES, Task, without_reference};
use crate::EvalError;
use crate::layout::Layout;
use crate::matched::Matched;
use crate::metric::caption::{
    CiderForm, PREDICTION_WORDS, REFERENCE_WORDS, Scored, bleu, cider, prepared, rouge_l,
};
use crate::problem::Problems;
use crate::protocol::Protocol;
use crate::report::Report;
use crate::submission::SubmissionFile;

#[cfg(feature = "jars")]
pub use jars::score_by_jars;
pub(crate) use references::EntryOrder;
pub use references::References;

/// COCO, Karpathy's split.
pub(crate) static COCO: Captioned = Captioned {
    name: "coco",
    title: "COCO captions",
    folders: &["coco"],
    order: EntryOrder::Position,
};

/// Flickr30k.
pub(crate) static FLICKR30K: Captioned = Captioned {
    name: "flickr30k",
    title: "Flickr30k",
    folders: &["flickr30k", "flickr"],
    order: EntryOrder::Position,
};

/// Conceptual Captions.
pub(crate) static CONCEPTUAL: Captioned = Captioned {
    name: "conceptual",
    title: "Conceptual Captions",
    folders: &["conceptual"],
    order: EntryOrder::QuestionId,
};

/// A benchmark of captions.
#[derive(Debug)]
pub(crate) struct Captioned {
    name: &'static str,
    title: &'static str,
    folders: &'static [&'static str],
    order: EntryOrder,
}

/// A benchmark whose answers are captions.
pub trait Captioning {
    /// What people wrote about its pictures.
    ///
    /// # Errors
    /// If it cannot be read; single bad entries are added to `problems`.
    fn references(&self, path: &Path, problems: &mut Problems) -> Result<References, EvalError>;
}

impl Captioning for Captioned {
    fn references(&self, path: &Path, problems: &mut Problems) -> Result<References, EvalError> {
        References::read(path, self.order, problems)
    }
}

impl Task for Captioned {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> &'static str {
        self.title
    }

    fn crops(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Released
    }

    fn layout(&self) -> Option<Layout> {
        Some(layout(self.folders))
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        score(self, matched, references, report)
    }

    fn submit(
        &self,
        matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        result(matched)
    }

    fn captioning(&self) -> Option<&dyn Captioning> {
        Some(self)
    }
}

/// Where the files of a captioning benchmark are.
pub(super) fn layout(folders: &'static [&'static str]) -> Layout {
    Layout {
        folders,
        questions: &["question*.jsonl", "*question.jsonl", "*questions.jsonl"],
        images: &["images", "val2014", "flickr30k_images", ""],
        annotations: &[
            "annotations.json",
            "*karpathy*.json",
            "*test*.json",
            "*val*.json",
            "*.json",
        ],
    }
}

/// Adds the COCO toolkit's metrics to a report.
pub(super) fn score(
    captioning: &dyn Captioning,
    matched: &Matched<'_>,
    references: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    for set in sets(captioning, matched, references, &mut report.problems)? {
        metrics(&set.prefix, &set.scored, report);
    }
    Ok(())
}

/// `[{image_id, caption}]`, as the COCO toolkit reads results.
pub(super) fn result(matched: &Matched<'_>) -> Result<Vec<SubmissionFile>, EvalError> {
    let rows: Vec<Value> = matched
        .answered()
        .map(|(question, answer)| json!({"image_id": question.id, "caption": answer.text}))
        .collect();
    SubmissionFile::json("captions_result.json", &rows)
}

/// Captions that are scored together, and the prefix of their metrics' names.
struct Set {
    prefix: String,
    scored: Vec<Scored>,
}

/// All captions, then those of each domain.
fn sets(
    captioning: &dyn Captioning,
    matched: &Matched<'_>,
    references: &Path,
    problems: &mut Problems,
) -> Result<Vec<Set>, EvalError> {
    let references = captioning.references(references, problems)?;
    let mut all = Vec::new();
    let mut domains = Vec::new();
    for (question, answer) in &matched.pairs {
        let Some(captions) = references.of(question) else {
            without_reference(&question.id, NOT_IN_REFERENCES, problems);
            continue;
        };
        let text = answer.map_or("", |answer| answer.text.as_str());
        let known: Vec<String> = captions
            .texts
            .iter()
            .map(|text| prepared(text, REFERENCE_WORDS))
            .collect();
        all.push(Scored::tokenized(&prepared(text, PREDICTION_WORDS), &known));
        domains.push(captions.domain.clone());
    }
    let mut names: Vec<&String> = domains.iter().flatten().collect();
    names.sort();
    names.dedup();
    let parts = names.into_iter().map(|name| {
        let of_domain = all.iter().zip(&domains);
        Set {
            prefix: format!("{name} "),
            scored: of_domain
                .filter(|(_, domain)| domain.as_ref() == Some(name))
                .map(|(scored, _)| scored.clone())
                .collect(),
        }
    });
    let mut sets: Vec<Set> = parts.collect();
    sets.insert(
        0,
        Set {
            prefix: String::new(),
            scored: all,
        },
    );
    sets.retain(|set| !set.scored.is_empty());
    Ok(sets)
}

/// All metrics of a set; documents are counted over that set, as the toolkit does.
fn metrics(prefix: &str, scored: &[Scored], report: &mut Report) {
    let count = scored.len();
    if count == 0 {
        return;
    }
    let form = |form| cider(scored, form).score;
    report.percent(format!("{prefix}CIDEr"), Some(form(CiderForm::D)), count);
    for (n, value) in bleu(scored).scores.iter().enumerate() {
        report.percent(format!("{prefix}BLEU-{}", n + 1), Some(*value), count);
    }
    let rouge = Some(rouge_l(scored).score);
    report.percent(format!("{prefix}ROUGE-L"), rouge, count);
    report.percent(
        format!("{prefix}CIDEr (first form)"),
        Some(form(CiderForm::Plain)),
        count,
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::fixture::{Fixture, text_of};
    use crate::task::nocaps::NoCaps;

    #[test]
    fn captions_in_every_layout() {
        let lines = [
            json!({"question_id": 0, "image": "a.jpg", "text": "Describe the image."}),
            json!({"question_id": 1, "image": "b.jpg", "text": "Describe the image."}),
        ];
        let in_order = json!([
            {"caption": ["A red dog runs.", "Dog."], "domain": "near-domain"},
            {"caption": "A blue bird sits.", "domain": "out-domain"},
        ]);
        let labels = json!([{"label": "a red dog runs"}, {"label": "a blue bird sits"}]);
        let coco = json!({"images": [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}],
            "annotations": [{"image_id": 0, "caption": "A red dog runs."},
                {"image_id": 1, "caption": "A blue bird sits."}]});
        let karpathy = json!({"images": [
            {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "A red dog runs."}]},
            {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "A blue bird sits."}]},
            {"filename": "c.jpg", "split": "train", "sentences": [{"raw": "A cat."}]}]});
        for (task, references) in [
            (&NoCaps as &'static dyn Task, in_order),
            (&CONCEPTUAL, labels),
            (&COCO, coco),
            (&FLICKR30K, karpathy),
        ] {
            let fixture = Fixture::new(task, "q.jsonl")
                .lines("q.jsonl", &lines)
                .json("refs.json", &references)
                .annotations("refs.json");
            let questions = fixture.questions();
            let given = fixture.answers(&questions, |q| {
                Some(["A red dog runs.", "A cat."][q.position].into())
            });
            let report = fixture.score(&questions, &given);
            assert_eq!(report.problems.total(), 0, "{task}");
            let rouge = report.value("ROUGE-L").unwrap();
            assert!(rouge > 50.0 && rouge < 70.0, "{task}: {rouge}");
            assert_eq!(
                report.value("out-domain ROUGE-L").is_some(),
                task.name() == "nocaps"
            );
            assert_eq!(
                text_of(&fixture.submission(&questions, &given)),
                r#"[{"image_id":0,"caption":"A red dog runs."},{"image_id":1,"caption":"A cat."}]"#
            );
            let again = fixture.score(&questions, &given);
            assert_eq!(
                serde_json::to_string(&again).unwrap(),
                serde_json::to_string(&report).unwrap()
            );
        }
    }
}
