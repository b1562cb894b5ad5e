//! NoCaps, its domains in one file or, as the released SQ-LLaVA evaluates it, in files of their
//! own: questions `near-domain_question.jsonl`, captions `nocaps_val_near_domain.json`, pictures in
//! `images/near-domain`; the same for the others.

use std::path::{Path, PathBuf};

use super::captions::{self, Captioning, EntryOrder, References};
use super::{Task, read_jsonl};
use crate::EvalError;
use crate::layout::{Files, Layout, first};
use crate::matched::Matched;
use crate::problem::Problems;
use crate::protocol::Protocol;
use crate::question::{ImageRef, QuestionOptions, Questions};
use crate::report::Report;
use crate::submission::SubmissionFile;

/// Captions of NoCaps.
#[derive(Debug)]
pub struct NoCaps;

impl Task for NoCaps {
    fn name(&self) -> &'static str {
        "nocaps"
    }

    fn title(&self) -> &'static str {
        "NoCaps"
    }

    fn crops(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Released
    }

    fn layout(&self) -> Option<Layout> {
        Some(captions::layout(&["nocaps"]))
    }

    /// Where each domain has its own files, the folder is taken in their place.
    fn find(&self, root: &Path) -> Result<Option<Files>, EvalError> {
        let layout = captions::layout(&["nocaps"]);
        let Some(mut found) = layout.find(root)? else {
            return Ok(None);
        };
        let folder = found.questions.parent().unwrap_or(root).to_path_buf();
        if !question_files(&folder)?.is_empty() {
            found.questions.clone_from(&folder);
        }
        let whole = first(&folder, &["annotations.json", "nocaps_val_4500*.json"])?;
        if whole.is_some() {
            found.annotations = whole;
        } else if !caption_files(&folder)?.is_empty() {
            found.annotations = Some(folder);
        }
        Ok(Some(found))
    }

    fn read(&self, files: &Files, _options: &QuestionOptions) -> Result<Questions, EvalError> {
        match files.questions.is_dir() {
            true => domain_questions(files),
            false => read_jsonl(files),
        }
    }

    fn score(
        &self,
        matched: &Matched<'_>,
        references: &Path,
        report: &mut Report,
    ) -> Result<(), EvalError> {
        captions::score(self, matched, references, report)
    }

    fn submit(
        &self,
        matched: &Matched<'_>,
        _references: Option<&Path>,
    ) -> Result<Vec<SubmissionFile>, EvalError> {
        captions::result(matched)
    }

    fn captioning(&self) -> Option<&dyn Captioning> {
        Some(self)
    }
}

impl Captioning for NoCaps {
    fn references(&self, path: &Path, problems: &mut Problems) -> Result<References, EvalError> {
        if !path.is_dir() {
            return References::read(path, EntryOrder::Position, problems);
        }
        let files = caption_files(path)?;
        if files.is_empty() {
            let reason = "holds no captions of NoCaps, such as nocaps_val_near_domain.json";
            return Err(EvalError::benchmark(path, reason));
        }
        References::read_domains(files, problems)
    }
}

/// The domains, and the letters by which a file's name is recognised.
const DOMAINS: [(&str, &str); 3] = [
    ("in-domain", "indomain"),
    ("near-domain", "neardomain"),
    ("out-domain", "outdomain"),
];

/// A domain and its file.
type DomainFile = (&'static str, PathBuf);

/// The domain in a file's name, whose words may be separated by anything.
fn domain_of(name: &str) -> Option<&'static str> {
    let letters: String = name.chars().filter(|c| c.is_alphanumeric()).collect();
    let letters = letters.to_lowercase();
    let found = DOMAINS.iter().find(|(_, told)| letters.contains(told));
    found.map(|(domain, _)| *domain)
}

/// The question files of a folder, a domain each.
fn question_files(folder: &Path) -> Result<Vec<DomainFile>, EvalError> {
    files(folder, |name| {
        name.contains("question") && name.ends_with(".jsonl")
    })
}

/// The caption files of a folder, or of `annotations` in it, a domain each.
fn caption_files(folder: &Path) -> Result<Vec<DomainFile>, EvalError> {
    let captions = |name: &str| name.ends_with(".json") && !name.contains("question");
    let found = files(folder, captions)?;
    let below = folder.join("annotations");
    match found.is_empty() && below.is_dir() {
        true => files(&below, captions),
        false => Ok(found),
    }
}

/// The wanted files of a folder; two of a domain are an error.
fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<DomainFile>, EvalError> {
    let io = |source| EvalError::io(folder, source);
    let mut found: Vec<DomainFile> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(domain) = domain_of(&name).filter(|_| wanted(&name) && path.is_file()) else {
            continue;
        };
        if let Some((_, other)) = found.iter().find(|(known, _)| *known == domain) {
            let reason = format!(
                "{} and {} are both of the {domain}; keep one of them here",
                other.file_name().unwrap_or_default().display(),
                name
            );
            return Err(EvalError::benchmark(folder, reason));
        }
        found.push((domain, path.clone()));
    }
    found.sort();
    Ok(found)
}

/// Questions of all domains; ids are `<domain>/<id>`, as they begin at 0 in each file.
fn domain_questions(files: &Files) -> Result<Questions, EvalError> {
    let folder = &files.questions;
    let mut questions = Questions::new(files);
    let domains = question_files(folder)?;
    if domains.is_empty() {
        let reason = "holds no <domain>_question.jsonl of NoCaps (near-domain, out-domain …)";
        return Err(EvalError::benchmark(folder, reason));
    }
    for (domain, path) in domains {
        let images = files.images.as_deref();
        let apart = images.is_some_and(|images| images.join(domain).is_dir());
        let first = questions.list.len();
        questions.read_jsonl(&path, |text| text)?;
        for question in &mut questions.list[first..] {
            question.id = format!("{domain}/{}", question.id).as_str().into();
            question.category = Some(domain.to_owned());
            if let (true, Some(ImageRef::File(name))) = (apart, &mut question.image) {
                *name = format!("{domain}/{name}");
            }
        }
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::question::Question;
    use crate::task::fixture::Fixture;

    /// NoCaps as the released SQ-LLaVA has it; `captions` adds its captions.
    fn by_domain(captions: impl Fn(Fixture) -> Fixture) -> (Fixture, Files) {
        let mut fixture = Fixture::new(&NoCaps, "nocaps");
        for (domain, first) in [("near-domain", "n"), ("out-domain", "o")] {
            let lines = [0, 1].map(|id| {
                json!({"question_id": id, "image": format!("{first}{id}.jpg"), "text": "Describe."})
            });
            fixture = fixture.lines(&format!("nocaps/{domain}_question.jsonl"), &lines);
            for id in [0, 1] {
                fixture = fixture.file(&format!("nocaps/images/{domain}/{first}{id}.jpg"), "x");
            }
        }
        let fixture = captions(fixture);
        let files = NoCaps.find(fixture.folder.path()).unwrap();
        (fixture, files.unwrap())
    }

    /// Asks, answers and scores; the fixture's own files are `files`.
    fn check(fixture: Fixture, files: &Files) {
        let fixture = Fixture {
            files: files.clone(),
            ..fixture
        };
        let mut questions = fixture.questions();
        questions.drop_without_image();
        let ids: Vec<String> = questions.list.iter().map(|q| q.id.to_string()).collect();
        assert_eq!(
            ids,
            [
                "near-domain/0",
                "near-domain/1",
                "out-domain/0",
                "out-domain/1"
            ]
        );
        let said = |q: &Question| match q.id.to_string().as_str() {
            "near-domain/0" => "A red dog runs.",
            "near-domain/1" => "A blue bird sits.",
            "out-domain/0" => "A wombat eats.",
            _ => "An armadillo sleeps.",
        };
        let given = fixture.answers(&questions, |q| Some(said(q).into()));
        let report = fixture.score(&questions, &given);
        assert_eq!(report.problems.total(), 0, "{:?}", report.problems.lines());
        for (name, count) in [
            ("ROUGE-L", 4),
            ("near-domain ROUGE-L", 2),
            ("out-domain ROUGE-L", 2),
        ] {
            let metric = report.metrics.iter().find(|m| m.name == name).unwrap();
            assert_eq!(metric.count, count, "{name}");
            assert!(
                (metric.value - 100.0).abs() < 1e-9,
                "{name}: {}",
                metric.value
            );
        }
    }

    #[test]
    fn fault_22_nocaps_takes_the_files_of_all_domains() {
        let near = json!([{"image": "n0.jpg", "caption": ["A red dog runs."]},
            {"image": "n1.jpg", "caption": ["A blue bird sits."]}]);
        let out = json!([{"caption": ["A wombat eats."]}, {"caption": ["An armadillo sleeps."]}]);
        let (fixture, files) = by_domain(|fixture| {
            fixture
                .json("nocaps/nocaps_val_near_domain.json", &near)
                .json("nocaps/nocaps_val_out_domain.json", &out)
        });
        assert_eq!(files.questions, fixture.path("nocaps"));
        check(fixture, &files);
        // The whole of the validation set in one file.
        let picture = |id: u32, name: &str, domain: &str| json!({"id": id, "file_name": name, "domain": domain});
        let whole = json!({
            "images": [picture(0, "n0.jpg", "near-domain"), picture(1, "o0.jpg", "out-domain"),
                picture(2, "n1.jpg", "near-domain"), picture(3, "o1.jpg", "out-domain")],
            "annotations": [{"image_id": 0, "caption": "A red dog runs."},
                {"image_id": 1, "caption": "A wombat eats."},
                {"image_id": 2, "caption": "A blue bird sits."},
                {"image_id": 3, "caption": "An armadillo sleeps."}]});
        let (fixture, files) =
            by_domain(|fixture| fixture.json("nocaps/nocaps_val_4500_captions.json", &whole));
        assert_eq!(
            files.annotations,
            Some(fixture.path("nocaps/nocaps_val_4500_captions.json"))
        );
        check(fixture, &files);
    }

    #[test]
    fn fault_22_two_files_of_a_domain_are_an_error() {
        let fixture = Fixture::new(&NoCaps, "nocaps")
            .file("nocaps/near-domain_question.jsonl", "")
            .file("nocaps/question_near_domain.jsonl", "");
        let error = NoCaps.find(fixture.folder.path()).unwrap_err();
        assert!(
            error.to_string().contains("both of the near-domain"),
            "{error}"
        );
    }

    #[test]
    fn domains_are_told_by_the_names_of_files() {
        for (name, domain) in [
            ("near-domain_question.jsonl", Some("near-domain")),
            ("nocaps_val_out_domain.json", Some("out-domain")),
            ("InDomain.json", Some("in-domain")),
            ("nocaps_val_4500_captions.json", None),
        ] {
            assert_eq!(domain_of(name), domain, "{name}");
        }
    }
}
