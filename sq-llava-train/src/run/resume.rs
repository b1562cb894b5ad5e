//! Where a run resumes, and whether it may.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::run::manifest::{MANIFEST, verify};
use crate::run::run_dir::{CheckpointDir, RunDirectory, best_name, checkpoints, name_of};
use crate::run::state::{RunState, STATE, Sources};
use crate::step::moments::MOMENTS;

/// Which checkpoint a run resumes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Resume {
    /// The newest. If it is torn the run does not start, and the one before it is named.
    #[default]
    Latest,
    /// The one of this name in the run directory.
    Checkpoint(String),
}

/// A checkpoint that a run resumes from.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// A run directory with the weights.
    pub path: PathBuf,
    pub state: RunState,
}

/// Where a run resumes.
#[derive(Debug)]
pub(crate) struct ResumePoint {
    /// `None` if the run left no checkpoint.
    pub from: Option<Checkpoint>,
    /// Whether the run is over.
    pub finished: bool,
    /// Newer checkpoints that are of no use.
    pub torn: Vec<PathBuf>,
}

/// Keys of a recipe that do not change the numbers, and paths: of models and data `Sources` compares
/// the files; pictures and masks are taken to be the same.
const HOW: [&str; 14] = [
    "log_every",
    "save_every",
    "keep_checkpoints",
    "workers",
    "max_bad_images",
    "feature_cache_mib",
    "init_from",
    "model.masks.folder",
    "stage1.data",
    "stage1.images",
    "stage1.validation",
    "stage2.data",
    "stage2.images",
    "stage2.validation",
];

/// Whether a key does not change the numbers: one of [`HOW`], of reports, or the path of one of
/// several sources.
pub(crate) fn is_how(key: &str) -> bool {
    let path = key.ends_with("].data") || key.ends_with("].images");
    HOW.contains(&key) || Recipe::is_report(key) || (path && key.contains(".sources["))
}

impl Checkpoint {
    fn read(path: &Path) -> Result<Self, TrainError> {
        Ok(Self {
            path: path.to_path_buf(),
            state: RunState::read(path)?,
        })
    }
}

impl ResumePoint {
    /// Finds the checkpoint to go on from.
    ///
    /// # Errors
    /// If it is torn, or does not exist; the message says what to do.
    pub fn find(run: &Path, resume: &Resume) -> Result<Self, TrainError> {
        let fail = |reason: String| TrainError::RunDirectory {
            path: run.to_path_buf(),
            reason,
        };
        let found = candidates(run)?;
        let chosen = match resume {
            Resume::Checkpoint(name) => named(run, &found, name).map_err(fail)?,
            Resume::Latest => {
                // The end of the run lies in the directory itself.
                if is_finished(run) {
                    return Ok(Self {
                        from: Some(Checkpoint::read(run)?),
                        finished: true,
                        torn: Vec::new(),
                    });
                }
                let Some(newest) = found.first() else {
                    return Ok(Self {
                        from: None,
                        finished: false,
                        torn: Vec::new(),
                    });
                };
                newest.clone()
            }
        };
        let chosen = &*chosen;
        if let Err(torn) = verify(chosen) {
            let advice = advice(&found, chosen);
            return Err(fail(format!(
                "{} is torn: {torn}; {advice}",
                name_of(chosen)
            )));
        }
        Ok(Self {
            from: Some(Checkpoint::read(chosen)?),
            finished: false,
            torn: found
                .iter()
                .take_while(|path| *path != chosen)
                .filter(|path| verify(path).is_err())
                .cloned()
                .collect(),
        })
    }
}

/// The checkpoint, or best model, of this name; `Err` says which there are.
fn named(run: &Path, found: &[PathBuf], name: &str) -> Result<PathBuf, String> {
    let best = best_models(run);
    let all = || found.iter().chain(&best);
    if let Some(path) = all().find(|path| name_of(path) == name) {
        return Ok(path.clone());
    }
    let names: Vec<String> = all().map(|path| name_of(path)).collect();
    Err(format!(
        "there is no checkpoint {name}; there are: {}",
        match names.is_empty() {
            true => "none".into(),
            false => names.join(", "),
        }
    ))
}

/// What to do where the chosen one of these checkpoints, the newest first, is torn.
fn advice(found: &[PathBuf], chosen: &Path) -> String {
    let mut older = found.iter().skip_while(|path| *path != chosen).skip(1);
    match older.find(|path| verify(path).is_ok()) {
        Some(path) => {
            let name = name_of(path);
            format!("{name} before it is whole: go on from it with --resume={name}")
        }
        None => "and none before it is whole: begin anew in another directory".into(),
    }
}

/// Where a run resumes, once it is clear that it may.
///
/// # Errors
/// If recipe or sources are others, or as [`ResumePoint::find`].
pub(crate) fn find(
    resume: &Resume,
    recipe: &Recipe,
    run: &Path,
    sources: &Sources,
) -> Result<ResumePoint, TrainError> {
    let (mut then, _) = RunDirectory::asked(run)?;
    then.thread_groups = Some(then.groups());
    same_recipe(run, &then, recipe)?;
    let point = ResumePoint::find(run, resume)?;
    if let Some(checkpoint) = &point.from {
        same_sources(run, &checkpoint.state.sources, sources)?;
    }
    Ok(point)
}

/// Checkpoints and ends of stages, the newest first.
fn candidates(run: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut found = checkpoints(run)?;
    for stage in [1, 2] {
        let end = run.join(format!("stage{stage}"));
        if end.is_dir() {
            found.push(CheckpointDir {
                stage,
                step: usize::MAX,
                path: end,
            });
        }
    }
    found.sort();
    Ok(found.into_iter().rev().map(|found| found.path).collect())
}

/// The best models that training can go on from. They are chosen by name alone: a newer checkpoint
/// may be worse.
fn best_models(run: &Path) -> Vec<PathBuf> {
    let best = [1, 2].map(|stage| run.join(best_name(stage)));
    let whole = |path: &PathBuf| path.join(MOMENTS).is_file();
    best.into_iter().filter(whole).collect()
}

/// Whether a run is over, and the names of its checkpoints that are whole, the newest first.
///
/// # Errors
/// If its directory cannot be read.
pub(crate) fn whole_checkpoints(run: &Path) -> Result<(bool, Vec<String>), TrainError> {
    let finished = is_finished(run);
    let whole = candidates(run)?
        .into_iter()
        .filter(|path| verify(path).is_ok());
    Ok((finished, whole.map(|path| name_of(&path)).collect()))
}

/// Whether the end of a run lies in its directory.
fn is_finished(run: &Path) -> bool {
    run.join("config.json").is_file() && verify_end(run)
}

/// Whether the files of the run's end are whole.
fn verify_end(run: &Path) -> bool {
    run.join(MANIFEST).is_file() && run.join(STATE).is_file() && verify(run).is_ok()
}

/// Refuses to go on with another recipe, and names what differs.
///
/// # Errors
/// If a key that changes the numbers has another value.
fn same_recipe(run: &Path, then: &Recipe, now: &Recipe) -> Result<(), TrainError> {
    let differences = differing(&flat(then)?, &flat(now)?)
        .into_iter()
        .filter(|found| !is_how(&found.key))
        .map(|found| format!("{} was {} and is {}", found.key, found.first, found.second));
    let differences = differences.collect();
    refuse(run, "the recipe differs", differences)
}

/// Refuses to go on with other data or another model, and names what differs.
///
/// # Errors
/// If something differs.
fn same_sources(run: &Path, then: &Sources, now: &Sources) -> Result<(), TrainError> {
    refuse(
        run,
        "the sources differ",
        then.differences(now, ["then", "now"]),
    )
}

fn refuse(run: &Path, what: &str, differences: Vec<String>) -> Result<(), TrainError> {
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainError::RunDirectory {
        path: run.to_path_buf(),
        reason: format!(
            "the run cannot go on, {what}: {}; give what it began with, or begin a new run",
            differences.join("; ")
        ),
    })
}

/// A key that has two values, as they are to be shown.
pub(crate) struct Difference {
    pub key: String,
    pub first: String,
    pub second: String,
}

/// The keys whose values differ.
pub(crate) fn differing<V: PartialEq + Display>(
    a: &BTreeMap<String, V>,
    b: &BTreeMap<String, V>,
) -> Vec<Difference> {
    let shown = |v: Option<&V>| v.map_or("unset".into(), ToString::to_string);
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .map(|key| (key, a.get(key), b.get(key)))
        .filter(|(_, a, b)| a != b)
        .map(|(key, a, b)| Difference {
            key: key.clone(),
            first: shown(a),
            second: shown(b),
        })
        .collect()
}

/// A recipe's values by their dotted keys.
pub(crate) fn flat(recipe: &Recipe) -> Result<BTreeMap<String, toml::Value>, TrainError> {
    fn walk(prefix: &str, table: toml::Table, out: &mut BTreeMap<String, toml::Value>) {
        for (key, value) in table {
            let key = if prefix.is_empty() {
                key
            } else {
                format!("{prefix}.{key}")
            };
            match value {
                toml::Value::Table(inner) => walk(&key, inner, out),
                toml::Value::Array(list) if list.first().is_some_and(toml::Value::is_table) => {
                    for (number, value) in list.into_iter().enumerate() {
                        if let toml::Value::Table(inner) = value {
                            walk(&format!("{key}[{number}]"), inner, out);
                        }
                    }
                }
                value => {
                    out.insert(key, value);
                }
            }
        }
    }
    let table = toml::Table::try_from(recipe)
        .map_err(|e| TrainError::Internal(format!("the recipe is not TOML: {e}")))?;
    let mut out = BTreeMap::new();
    walk("", table, &mut out);
    Ok(out)
}
