//! Any questions in LLaVA's JSONL: answered, not scored.

use std::path::Path;

use super::Task;
use crate::EvalError;
use crate::matched::Matched;
use crate::report::Report;

/// Questions of no benchmark.
#[derive(Debug)]
pub struct Generic;

impl Task for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn title(&self) -> &'static str {
        "questions"
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
        report.note("these questions have no references");
        Ok(())
    }
}
