//! The only list of benchmarks.

use std::path::Path;

use crate::EvalError;
use crate::layout::Files;
use crate::task::Task;
use crate::task::captions::{COCO, CONCEPTUAL, FLICKR30K};
use crate::task::generic::Generic;
use crate::task::gqa::Gqa;
use crate::task::llava_bench::LlavaBench;
use crate::task::mm_vet::MmVet;
use crate::task::mmbench::MmBench;
use crate::task::mme::Mme;
use crate::task::nocaps::NoCaps;
use crate::task::pope::Pope;
use crate::task::science_qa::ScienceQa;
use crate::task::seed::Seed;
use crate::task::text_vqa::TextVqa;
use crate::task::vizwiz::VizWiz;
use crate::task::vqav2::VqaV2;

/// All benchmarks, in the order of the paper's table.
pub static TASKS: [&dyn Task; 17] = [
    &VqaV2,
    &Gqa,
    &VizWiz,
    &ScienceQa,
    &TextVqa,
    &Pope,
    &MmVet,
    &LlavaBench,
    &MmBench::English,
    &MmBench::Chinese,
    &Mme,
    &Seed,
    &COCO,
    &FLICKR30K,
    &NoCaps,
    &CONCEPTUAL,
    &Generic,
];

/// The benchmark of a name.
///
/// # Errors
/// If there is none; the message lists the names.
pub fn task(name: &str) -> Result<&'static dyn Task, String> {
    let found = TASKS.into_iter().find(|task| task.name() == name);
    found.ok_or_else(|| {
        let names = TASKS.map(|task| task.name()).join(", ");
        format!("no benchmark \"{name}\"; known are {names}")
    })
}

/// Every benchmark found under a folder.
///
/// # Errors
/// If a folder cannot be listed, or there is no benchmark.
pub fn find_all(root: &Path) -> Result<Vec<(&'static dyn Task, Files)>, EvalError> {
    let mut found = Vec::new();
    for task in TASKS {
        if let Some(files) = task.find(root)? {
            found.push((task, files));
        }
    }
    if found.is_empty() {
        return Err(EvalError::benchmark(
            root,
            "holds no benchmark in LLaVA's layout (pope/llava_pope_test.jsonl and so on); \
             name one with its question file",
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
