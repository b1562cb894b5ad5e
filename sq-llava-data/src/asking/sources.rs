//! Data sources by name: which of those that a policy names no sample is from, and which have a δ
//! that follows how far they are learnt.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rayon::prelude::*;

use super::{AskingPolicy, first_folder};
use crate::DataError;
use crate::manifest::LlavaSample;
use crate::parallel::on_threads;
use crate::source::DataSet;

/// The sources whose δ is measured ([`DeltaSchedule::Adaptive`]): those of the samples with a
/// picture that have no δ of their own in [`AskingPolicy::sources`].
///
/// A sample is from the first folder of its first image path. One in no folder is from its file; of
/// several files of a source, shards for one, from the first. Where there are more than
/// [`Self::MOST`] folders, they are no sources, and every sample is from its file.
///
/// [`DeltaSchedule::Adaptive`]: super::DeltaSchedule::Adaptive
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowedSources {
    /// Each once, sorted.
    names: Vec<String>,
    /// Whether folders are sources.
    folders: bool,
}

impl FollowedSources {
    /// More folders than this are no sources.
    pub const MOST: usize = 64;

    /// Their names, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Place among [`Self::names`] of the source that the sample at `index` of the data is from.
    pub fn place(
        &self,
        policy: &AskingPolicy,
        data: &DataSet,
        index: usize,
        sample: &LlavaSample,
    ) -> Option<usize> {
        let name = followed(policy, data, index, sample, self.folders)?;
        self.names
            .binary_search_by(|other| other.as_str().cmp(&name))
            .ok()
    }
}

/// The name of the source of a sample, if its δ is measured.
fn followed<'a>(
    policy: &AskingPolicy,
    data: &'a DataSet,
    index: usize,
    sample: &'a LlavaSample,
    folders: bool,
) -> Option<Cow<'a, str>> {
    let image = sample.images.first()?;
    if policy.source(&data.file_name(index), sample).is_some() {
        return None;
    }
    let folder = first_folder(image).filter(|_| folders);
    Some(folder.map_or_else(|| data.source_name(index), Cow::Borrowed))
}

impl AskingPolicy {
    /// Names among [`Self::sources`] that no sample of a data set falls under: misspelt, most
    /// likely. Reads the whole data set on `threads` threads.
    ///
    /// # Errors
    /// For a sample that is not LLaVA's, or if the threads cannot be started.
    pub fn unused_sources(&self, data: &DataSet, threads: usize) -> Result<Vec<String>, DataError> {
        if self.sources.is_empty() {
            return Ok(Vec::new());
        }
        let found = names(data, threads, |index, sample| {
            let found = self.source(&data.file_name(index), sample);
            found.map(|(name, _)| name.to_owned())
        })?;
        let unused = self.sources.keys().filter(|name| !found.contains(*name));
        Ok(unused.cloned().collect())
    }

    /// The sources whose δ is measured. Reads the whole data set on `threads` threads, twice where
    /// it has many folders.
    ///
    /// # Errors
    /// For a sample that is not LLaVA's, or if the threads cannot be started.
    pub fn followed_sources(
        &self,
        data: &DataSet,
        threads: usize,
    ) -> Result<FollowedSources, DataError> {
        let of = |folders| {
            let found = names(data, threads, |index, sample| {
                followed(self, data, index, sample, folders).map(Cow::into_owned)
            })?;
            Ok::<_, DataError>(FollowedSources {
                names: found.into_iter().collect(),
                folders,
            })
        };
        let by_folder = of(true)?;
        match by_folder.names.len() > FollowedSources::MOST {
            true => of(false),
            false => Ok(by_folder),
        }
    }
}

/// What `name` says of the samples of a data set, each once.
fn names(
    data: &DataSet,
    threads: usize,
    name: impl Fn(usize, &LlavaSample) -> Option<String> + Sync,
) -> Result<BTreeSet<String>, DataError> {
    let look = |index| match data.get(index) {
        // The loader says what becomes of it.
        Err(error) if error.is_damage() => Ok(None),
        sample => Ok::<_, DataError>(name(index, &sample?)),
    };
    on_threads(threads, || {
        let samples = (0..data.len()).into_par_iter();
        let parts = samples.try_fold(BTreeSet::new, |mut names, index| {
            names.extend(look(index)?);
            Ok::<_, DataError>(names)
        });
        parts.try_reduce(BTreeSet::new, |mut names, more| {
            names.extend(more);
            Ok(names)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::source::Source;

    fn write(folder: &Path, name: &str, images: &[&str]) -> PathBuf {
        let one = |image: &&str| match *image {
            "" => r#"{"conversations": []}"#.to_owned(),
            image => format!(r#"{{"image": "{image}", "conversations": []}}"#),
        };
        let samples: Vec<String> = images.iter().map(one).collect();
        let path = folder.join(name);
        std::fs::write(&path, format!("[{}]", samples.join(","))).unwrap();
        path
    }

    #[test]
    fn a_name_that_no_sample_falls_under_is_told() {
        let policy = AskingPolicy {
            sources: ["coco", "text.json", "gqa"]
                .map(|name| (name.to_owned(), 0.5))
                .into(),
            ..AskingPolicy::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "text.json", &["coco/1.jpg", "x.jpg"]);
        let data = DataSet::open_one(path, "").unwrap();
        assert_eq!(policy.unused_sources(&data, 2).unwrap(), ["gqa"]);
    }

    #[test]
    fn every_sample_that_can_be_asked_is_from_one_source() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, images: &[&str]| write(dir.path(), name, images);
        let source = |data: Vec<PathBuf>| Source {
            data,
            ..Source::new("", "")
        };
        let data = DataSet::open(vec![
            source(vec![
                file("a.json", &["vg/1.jpg", "", "coco/1.jpg", "gqa/1.jpg"]),
                file("b.json", &["./coco/2.jpg", "1.jpg"]),
            ]),
            source(vec![file(
                "c.json",
                &["2.jpg", "coco/3.jpg", "vg\\\\2.jpg"],
            )]),
        ])
        .unwrap();
        let policy = AskingPolicy {
            sources: [("gqa".to_owned(), 0.1)].into(),
            ..AskingPolicy::default()
        };
        let sources = policy.followed_sources(&data, 2).unwrap();
        assert_eq!(sources.names(), ["a.json", "c.json", "coco", "vg"]);
        let place = |index| {
            let sample = data.get(index).unwrap();
            sources.place(&policy, &data, index, &sample)
        };
        // One without a picture is never asked; gqa has its own δ; b.json is a part of a source.
        let places: Vec<Option<usize>> = (0..data.len()).map(place).collect();
        let expected = [
            Some(3),
            None,
            Some(2),
            None,
            Some(2),
            Some(0),
            Some(1),
            Some(2),
            Some(3),
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn too_many_folders_are_no_sources() {
        let dir = tempfile::tempdir().unwrap();
        let of = |folders: usize| {
            let images: Vec<String> = (0..folders).map(|i| format!("{i:05}/1.jpg")).collect();
            let images: Vec<&str> = images.iter().map(String::as_str).collect();
            let path = write(dir.path(), &format!("{folders}.json"), &images);
            let data = DataSet::open_one(path, "").unwrap();
            let policy = AskingPolicy::default();
            let found = policy.followed_sources(&data, 2).unwrap();
            let sample = data.get(1).unwrap();
            let place = found.place(&policy, &data, 1, &sample);
            (found.names().to_vec(), place)
        };
        let (names, place) = of(FollowedSources::MOST);
        assert_eq!((names.len(), place), (64, Some(1)));
        assert_eq!(of(65), (vec!["65.json".to_owned()], Some(0)));
    }
}
