//! METEOR and SPICE of captions, by the COCO toolkit's programs.

use std::path::Path;

use super::sets;
use crate::EvalError;
use crate::matched::Matched;
use crate::metric::caption::Jars;
use crate::problem::Problems;
use crate::report::Report;
use crate::task::Task;

/// Adds METEOR and SPICE to the report of a captioning benchmark, nothing to another's; one whose
/// program is not given is left out with a note. SPICE leaves its files in `folder`.
///
/// # Errors
/// If the references cannot be read or a program fails.
pub fn score_by_jars(
    task: &dyn Task,
    matched: &Matched<'_>,
    references: &Path,
    jars: &Jars,
    folder: &Path,
    report: &mut Report,
) -> Result<(), EvalError> {
    let Some(captioning) = task.captioning() else {
        return Ok(());
    };
    for (jar, name) in [(&jars.meteor, "METEOR"), (&jars.spice, "SPICE")] {
        if jar.is_none() {
            let option = name.to_lowercase();
            report.note(format!(
                "{name} is left out: it needs Java and --{option}-jar FILE"
            ));
        }
    }
    if jars.meteor.is_none() && jars.spice.is_none() {
        return Ok(());
    }
    // What is wrong with the references is in the report already.
    let mut known = Problems::default();
    for set in sets(captioning, matched, references, &mut known)? {
        for (name, found) in [
            ("METEOR", jars.meteor(&set.scored)?),
            ("SPICE", jars.spice(&set.scored, folder)?),
        ] {
            if let Some(found) = found {
                let count = found.each.iter().flatten().count();
                let score = (count > 0).then_some(found.score);
                report.percent(format!("{}{name}", set.prefix), score, count);
            }
        }
    }
    Ok(())
}
