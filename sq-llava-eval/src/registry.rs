//! The only list of benchmarks: a new one gets a line here.

use std::path::Path;

use crate::EvalError;
use crate::layout::Files;
use crate::task::{self, Task};

/// All benchmarks, in the order of the paper's table.
pub static TASKS: &[&dyn Task] = &[
    &task::vqav2::VqaV2,
    &task::gqa::Gqa,
    &task::vizwiz::VizWiz,
    &task::science_qa::ScienceQa,
    &task::text_vqa::TextVqa,
    &task::pope::Pope,
    &task::mm_vet::MmVet,
    &task::llava_bench::LlavaBench,
    &task::mmbench::MmBench::English,
    &task::mmbench::MmBench::Chinese,
    &task::mme::Mme,
    &task::seed::Seed,
    &task::captions::COCO,
    &task::captions::FLICKR30K,
    &task::nocaps::NoCaps,
    &task::captions::CONCEPTUAL,
    &task::generic::Generic,
];

/// The benchmark of a name.
///
/// # Errors
/// If no benchmark has this name; the message lists those that there are.
pub fn named(name: &str) -> Result<&'static dyn Task, String> {
    let found = TASKS.iter().find(|task| task.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = TASKS.iter().map(|task| task.name()).collect();
        format!("no benchmark \"{name}\"; known are {}", names.join(", "))
    })
}

/// Every benchmark whose questions are found under a folder.
///
/// # Errors
/// If a folder cannot be listed, or there is no benchmark.
pub fn find_all(root: &Path) -> Result<Vec<(&'static dyn Task, Files)>, EvalError> {
    let mut found = Vec::new();
    for &task in TASKS {
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
