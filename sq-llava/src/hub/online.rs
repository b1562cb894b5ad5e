//! From a name to a folder of the cache.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::cache::{Repository, io};
use super::client::{Client, Listing};
use super::download::{Wanted, download, unusable};
use super::needed::Needed;
use super::settings::Settings;
use super::{HubError, ModelName, Part, Progress};

/// Finds models by name, in the cache and on the hub.
#[derive(Clone)]
pub struct Hub {
    settings: Settings,
    progress: Option<Progress>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = &self.progress.is_some();
        f.debug_struct("Hub")
            .field("settings", &self.settings)
            .field("progress", progress)
            .finish()
    }
}

impl Hub {
    /// By the environment, as Python's `huggingface_hub` reads it ([`Settings::from_env`]).
    pub fn from_env() -> Self {
        Self::new(Settings::from_env())
    }

    /// By settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            progress: None,
        }
    }

    /// Tells of downloads.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// The file or folder that is meant: the path itself if it exists or has not the form of a
    /// name, else the folder in the cache, after a download of what is missing there. Each time
    /// the hub is asked once which commit the revision is; if it cannot be, what the cache has is
    /// taken.
    ///
    /// # Errors
    /// If neither is there, or the download fails.
    pub fn locate(&self, given: &Path, part: Part) -> Result<PathBuf, HubError> {
        match ModelName::of(given) {
            Some(name) if !given.exists() => self.find(&name, part),
            _ => Ok(given.to_path_buf()),
        }
    }

    fn find(&self, name: &ModelName, part: Part) -> Result<PathBuf, HubError> {
        let repository = Repository::new(&self.settings.cache, name);
        let missing = |lacks: String, hub: String| HubError::Missing {
            name: name.clone(),
            cache: format!("the cache {} {lacks}", self.settings.cache.display()),
            hub,
        };
        if self.settings.offline {
            let advice = "HF_HUB_OFFLINE is set: unset it to download, or give a folder";
            return held(&repository, name, part).map_err(|lacks| missing(lacks, advice.into()));
        }
        let client = Client::new(&self.settings);
        match client.listing(name) {
            Ok(listing) => self.complete(&client, &repository, name, &listing, part),
            Err(refusal) => match held(&repository, name, part) {
                Ok(folder) => {
                    tracing::warn!("{name}: {refusal}; {} is taken", folder.display());
                    Ok(folder)
                }
                Err(lacks) if refusal.passing => {
                    let advice = "give a folder, or a cache that has it (HF_HUB_CACHE)";
                    Err(missing(lacks, format!("{refusal}: {advice}")))
                }
                Err(lacks) => Err(missing(lacks, refusal.to_string())),
            },
        }
    }

    /// Downloads what a snapshot lacks.
    fn complete(
        &self,
        client: &Client,
        repository: &Repository,
        name: &ModelName,
        listing: &Listing,
        part: Part,
    ) -> Result<PathBuf, HubError> {
        let commit = &listing.commit;
        let folder = repository.snapshot(commit);
        let needed = Needed::of(&listing.files, part).map_err(|reason| HubError::Unusable {
            name: name.clone(),
            reason,
        })?;
        let get = |files: &[String], told: Option<&Progress>| -> Result<(), HubError> {
            let mut wanted = Vec::new();
            for file in files.iter().filter(|file| !folder.join(file).is_file()) {
                let content = client
                    .content(name, commit, file)
                    .map_err(|refusal| unusable(name, file, &refusal.to_string()))?;
                wanted.push(Wanted {
                    file: file.clone(),
                    content,
                });
            }
            let total = wanted.iter().map(|wanted| wanted.content.bytes).sum();
            let mut before = 0;
            for wanted in &wanted {
                tracing::info!("{name}: {} ({} bytes)", wanted.file, wanted.content.bytes);
                let tell = |here: u64| told.map_or((), |told| told(name, before + here, total));
                download(client, repository, name, commit, wanted, &tell)?;
                before += wanted.content.bytes;
            }
            Ok(())
        };
        // The weights last: a snapshot that holds them lacks nothing.
        get(&needed.settings, None)?;
        let mut weights = needed.weights.clone();
        if let Some(index) = &needed.index {
            get(std::slice::from_ref(index), None)?;
            let shards = shards(&folder, index).map_err(|e| unusable(name, index, &e))?;
            if let Some(absent) = shards.iter().find(|shard| !listing.files.contains(*shard)) {
                let reason = format!("it names {absent}, which the hub does not have");
                return Err(unusable(name, index, &reason));
            }
            weights.extend(shards);
        }
        get(&weights, self.progress.as_ref())?;
        // The whole of it may lie where nothing can be written.
        if name.revision != *commit
            && let Err(error) = repository.note(&name.revision, commit)
        {
            tracing::info!("{error}");
        }
        Ok(folder)
    }
}

fn shards(folder: &Path, index: &str) -> Result<BTreeSet<String>, String> {
    let path = folder.join(index);
    let text = std::fs::read_to_string(&path).map_err(|e| io(&path)(e).to_string())?;
    Needed::shards(&text)
}

/// The snapshot in the cache, if its weights are whole; otherwise what the cache lacks.
fn held(repository: &Repository, name: &ModelName, part: Part) -> Result<PathBuf, String> {
    let lacks = || "does not have it".to_owned();
    let commit = repository.commit(&name.revision).ok_or_else(lacks)?;
    let folder = repository.snapshot(&commit);
    let files = repository.files(&commit);
    if files.is_empty() {
        return Err(lacks());
    }
    let partly = |what: String| format!("has it in part ({what})");
    let needed = Needed::of(&files, part).map_err(partly)?;
    if let Some(index) = &needed.index {
        let shards = shards(&folder, index).map_err(|e| partly(format!("{index}: {e}")))?;
        if let Some(absent) = shards.iter().find(|shard| !files.contains(*shard)) {
            return Err(partly(format!("{absent} is missing")));
        }
    }
    Ok(folder)
}
