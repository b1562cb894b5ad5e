//! NoCaps in files of its own for each domain, as the released SQ-LLaVA evaluates it: questions
//! `near-domain_question.jsonl`, captions `nocaps_val_near_domain.json`, pictures in
//! `images/near-domain`; the same for the others.

use std::path::{Path, PathBuf};

use super::question::{ImageRef, QuestionOptions, Questions};
use crate::EvalError;

/// The domains, and how their names are told in those of files.
const DOMAINS: [(&str, &str); 3] = [
    ("in-domain", "indomain"),
    ("near-domain", "neardomain"),
    ("out-domain", "outdomain"),
];

/// A domain and its file.
pub(super) type DomainFile = (&'static str, PathBuf);

/// The domain that a file's name tells, whatever parts its words.
fn domain_of(name: &str) -> Option<&'static str> {
    let letters: String = name.chars().filter(|c| c.is_alphanumeric()).collect();
    let letters = letters.to_lowercase();
    let found = DOMAINS.iter().find(|(_, told)| letters.contains(told));
    found.map(|(domain, _)| *domain)
}

/// The question files of a folder, a domain each.
///
/// # Errors
/// If the folder cannot be listed, or has several files for a domain.
pub(super) fn question_files(folder: &Path) -> Result<Vec<DomainFile>, EvalError> {
    files(folder, |name| {
        name.contains("question") && name.ends_with(".jsonl")
    })
}

/// The caption files of a folder, or of `annotations` in it, a domain each.
///
/// # Errors
/// As [`question_files`].
pub(super) fn caption_files(folder: &Path) -> Result<Vec<DomainFile>, EvalError> {
    let captions = |name: &str| name.ends_with(".json") && !name.contains("question");
    let found = files(folder, captions)?;
    let below = folder.join("annotations");
    match found.is_empty() && below.is_dir() {
        true => files(&below, captions),
        false => Ok(found),
    }
}

fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<DomainFile>, EvalError> {
    let io = |source| EvalError::Io {
        path: folder.to_path_buf(),
        source,
    };
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
pub(super) fn read_questions(
    folder: &Path,
    images: Option<&Path>,
    options: &QuestionOptions,
    questions: &mut Questions,
) -> Result<(), EvalError> {
    let files = question_files(folder)?;
    if files.is_empty() {
        let reason = "holds no <domain>_question.jsonl of NoCaps (near-domain, out-domain …)";
        return Err(EvalError::benchmark(folder, reason));
    }
    for (domain, path) in files {
        let apart = images.is_some_and(|images| images.join(domain).is_dir());
        let first = questions.list.len();
        questions.read_lines(&path, options)?;
        for question in &mut questions.list[first..] {
            question.id = format!("{domain}/{}", question.id).as_str().into();
            question.category = Some(domain.to_owned());
            if let (true, Some(ImageRef::File(name))) = (apart, &mut question.image) {
                *name = format!("{domain}/{name}");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
