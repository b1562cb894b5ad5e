//! The samples of a data set, wherever they lie: LLaVA's JSON with a folder of pictures, Parquet
//! and tar files with the pictures inside; several such sources, each of any number of files.
//!
//! Opening finds where samples are; a sample is read when it is asked for, and its pictures when
//! they are. Nothing else is kept but what was decoded last.

mod columns;
mod parquet;
mod picture;
mod shards;
mod tar;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use columns::Columns;
pub use picture::Picture;
pub use shards::expand;

use crate::DataError;
use crate::manifest::{LlavaSample, Manifest};
use parquet::{Cache, ParquetShard};
use tar::TarShard;

/// Where samples come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Files, folders and patterns: `.parquet`, `.tar`, and any other is LLaVA's JSON or JSONL.
    pub data: Vec<PathBuf>,
    /// Folder that paths of pictures start from.
    pub images: PathBuf,
    /// What its columns are called.
    pub columns: Columns,
    /// How often each of its samples comes in a pass over the data. Of a fraction, as many samples
    /// come once more, others in each pass.
    pub repeat: f64,
}

impl Source {
    /// A source whose samples come once, with the usual columns.
    pub fn new(data: impl Into<PathBuf>, images: impl Into<PathBuf>) -> Self {
        Self {
            data: vec![data.into()],
            images: images.into(),
            columns: Columns::default(),
            repeat: 1.0,
        }
    }
}

/// How many samples of a data set are a source's, one after the other, and how often they come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Number of samples.
    pub samples: usize,
    /// As [`Source::repeat`].
    pub repeat: f64,
}

impl Share {
    /// Samples that come once each.
    pub fn once(samples: usize) -> Self {
        Self {
            samples,
            repeat: 1.0,
        }
    }

    /// How often every sample comes in a pass.
    pub(crate) fn whole(&self) -> usize {
        self.repeat as usize
    }

    /// How many samples come once more.
    pub(crate) fn fraction(&self) -> usize {
        (self.repeat.fract() * self.samples as f64).round() as usize
    }

    /// Samples in a pass.
    pub(crate) fn in_a_pass(&self) -> usize {
        self.whole() * self.samples + self.fraction()
    }
}

/// The samples of several sources, numbered through.
#[derive(Debug, Clone)]
pub struct DataSet {
    parts: Arc<[Part]>,
    sources: Arc<[Source]>,
    /// Numbers of the samples, where these are not all, rising.
    chosen: Option<Arc<[usize]>>,
    damage: Arc<[DataError]>,
}

/// A file of a source.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    source: usize,
    /// Number of the samples in the parts before.
    start: usize,
    shard: Shard,
}

#[derive(Debug)]
enum Shard {
    Json(Manifest),
    Parquet(Box<ParquetShard>),
    Tar(TarShard),
}

impl DataSet {
    /// Finds the samples of sources, in the order given.
    ///
    /// # Errors
    /// If a file cannot be read, or is not what its ending says. A tar file that is cut short is in
    /// [`Self::damage`]: its samples up to there are found.
    pub fn open(sources: Vec<Source>) -> Result<Self, DataError> {
        let cache = Arc::new(Cache::default());
        let (mut parts, mut damage) = (Vec::new(), Vec::new());
        let mut start = 0;
        for (number, source) in sources.iter().enumerate() {
            for path in expand(&source.data)? {
                let shard = if shards::is_parquet(&path) {
                    let shard = ParquetShard::open(&path, &source.columns, &cache, parts.len())?;
                    Shard::Parquet(Box::new(shard))
                } else if shards::is_tar(&path) {
                    let (shard, torn) = TarShard::open(&path)?;
                    damage.extend(torn);
                    Shard::Tar(shard)
                } else {
                    Shard::Json(Manifest::open(&path)?)
                };
                let samples = shard.len();
                parts.push(Part {
                    path,
                    source: number,
                    start,
                    shard,
                });
                start += samples;
            }
        }
        Ok(Self {
            parts: parts.into(),
            sources: sources.into(),
            chosen: None,
            damage: damage.into(),
        })
    }

    /// The samples of LLaVA's file, whose pictures are paths from `images`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_one(
        data: impl Into<PathBuf>,
        images: impl Into<PathBuf>,
    ) -> Result<Self, DataError> {
        Self::open(vec![Source::new(data, images)])
    }

    /// Files that are cut short, whose samples up to there are here.
    pub fn damage(&self) -> &[DataError] {
        &self.damage
    }

    /// A part of the samples, by their indices, which rise. They keep their ids and places.
    ///
    /// # Errors
    /// If there is no sample of an index.
    pub fn select(&self, indices: &[usize]) -> Result<Self, DataError> {
        if let Some(&index) = indices.iter().find(|&&index| index >= self.len()) {
            return Err(self.no_sample(index));
        }
        let number = |&index: &usize| self.number(index).unwrap_or(index);
        let mut chosen: Vec<usize> = indices.iter().map(number).collect();
        chosen.sort_unstable();
        Ok(Self {
            chosen: Some(chosen.into()),
            ..self.clone()
        })
    }

    /// The same samples, each once in a pass.
    #[must_use]
    pub fn once(mut self) -> Self {
        let mut sources = self.sources.to_vec();
        sources.iter_mut().for_each(|source| source.repeat = 1.0);
        self.sources = sources.into();
        self
    }

    fn no_sample(&self, index: usize) -> DataError {
        let first = self.parts.first();
        DataError::Manifest {
            path: first.map_or_else(PathBuf::new, |part| part.path.clone()),
            sample: format!("sample #{index}"),
            offset: 0,
            reason: format!("there are only {} samples", self.len()),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        match (&self.chosen, self.parts.last()) {
            (Some(chosen), _) => chosen.len(),
            (None, Some(last)) => last.start + last.shard.len(),
            (None, None) => 0,
        }
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sources with the number of their samples.
    pub fn shares(&self) -> Vec<Share> {
        let mut shares: Vec<Share> = self
            .sources
            .iter()
            .map(|source| Share {
                samples: 0,
                repeat: source.repeat,
            })
            .collect();
        for (at, part) in self.parts.iter().enumerate() {
            let samples = match &self.chosen {
                None => part.shard.len(),
                Some(chosen) => {
                    let up_to = |end: usize| chosen.partition_point(|&number| number < end);
                    let end = self.parts.get(at + 1).map_or(usize::MAX, |next| next.start);
                    up_to(end) - up_to(part.start)
                }
            };
            shares[part.source].samples += samples;
        }
        shares
    }

    /// A sample's number among all samples of the files.
    fn number(&self, index: usize) -> Option<usize> {
        match &self.chosen {
            None => Some(index),
            Some(chosen) => chosen.get(index).copied(),
        }
    }

    /// A sample's number, the file that holds it, and its row there.
    fn find(&self, index: usize) -> Option<(usize, &Part, usize)> {
        let number = self.number(index)?;
        let after = self.parts.partition_point(|part| part.start <= number);
        let part = self.parts.get(after.checked_sub(1)?)?;
        let row = number - part.start;
        (row < part.shard.len()).then_some((number, part, row))
    }

    /// The files with the number of their samples, chosen or not.
    pub fn files(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.parts
            .iter()
            .map(|part| (&*part.path, part.shard.len()))
    }

    /// Whether pictures may be inside the files.
    pub fn holds_pictures(&self) -> bool {
        let json = |part: &Part| matches!(part.shard, Shard::Json(_));
        !self.parts.iter().all(json)
    }

    /// The file that holds a sample.
    pub fn path(&self, index: usize) -> Option<&Path> {
        Some(&self.find(index)?.1.path)
    }

    /// Name of that file without its folders; empty for an index without a sample.
    pub fn file_name(&self, index: usize) -> Cow<'_, str> {
        let name = self.path(index).and_then(Path::file_name);
        name.map_or(Cow::Borrowed(""), |name| name.to_string_lossy())
    }

    /// File name of the first file of a sample's source: what all its shards are called by.
    pub fn source_name(&self, index: usize) -> Cow<'_, str> {
        let first = self.find(index).and_then(|(_, part, _)| {
            let before = self
                .parts
                .partition_point(|other| other.source < part.source);
            self.parts.get(before)
        });
        let name = first.and_then(|first| first.path.file_name());
        name.map_or(Cow::Borrowed(""), |name| name.to_string_lossy())
    }

    /// Where a sample begins in its file: in bytes, in Parquet its row.
    pub fn offset(&self, index: usize) -> Option<u64> {
        let (_, part, row) = self.find(index)?;
        Some(match &part.shard {
            Shard::Json(manifest) => manifest.offset(row)?,
            Shard::Parquet(_) => row as u64,
            Shard::Tar(shard) => shard.offset(row),
        })
    }

    /// Reads one sample. May be called from several threads.
    ///
    /// # Errors
    /// If there is no sample `index`, it is not LLaVA's, or its bytes are damaged.
    pub fn get(&self, index: usize) -> Result<LlavaSample, DataError> {
        let Some((number, part, row)) = self.find(index) else {
            return Err(self.no_sample(index));
        };
        let columns = &self.sources[part.source].columns;
        let fault = |damaged| move |reason| part.fault(row, reason, damaged);
        match &part.shard {
            Shard::Json(manifest) => {
                manifest.parse(row, number, |text, name| columns.sample(text, name))
            }
            Shard::Parquet(shard) => {
                let text = shard.object(row).map_err(fault(true))?;
                let sample = columns.sample(&text, &number.to_string());
                let mut sample = sample.map_err(fault(false))?;
                let file = self.file_name(index);
                ParquetShard::name_pictures(&file, row, &mut sample.images);
                Ok(sample)
            }
            Shard::Tar(shard) => {
                let text = shard.object(row).map_err(fault(true))?;
                let mut sample = columns
                    .sample(&text, shard.key(row))
                    .map_err(fault(false))?;
                let named = shard.name_pictures(row, &mut sample.images);
                named.map_err(fault(false))?;
                Ok(sample)
            }
        }
    }

    /// The picture at a place of a sample, which has this name there.
    ///
    /// # Errors
    /// If its bytes cannot be read from the shard.
    pub fn picture(&self, index: usize, place: usize, name: &str) -> Result<Picture, DataError> {
        let Some((_, part, row)) = self.find(index) else {
            return Err(self.no_sample(index));
        };
        let inside = match &part.shard {
            Shard::Json(_) => Ok(None),
            Shard::Parquet(shard) => shard.picture(row, place),
            Shard::Tar(shard) => shard.picture(row, place).map(Some),
        };
        match inside {
            Ok(None) => Ok(Picture::File(self.sources[part.source].images.join(name))),
            Ok(Some(bytes)) => Ok(Picture::Inside {
                name: format!("{}: {}, {name}", part.path.display(), part.place(row)),
                bytes,
            }),
            Err(reason) => Err(part.fault(row, format!("picture {name}: {reason}"), true)),
        }
    }

    /// What tells a picture from all others, of other data sets too.
    pub fn picture_key(&self, index: usize, place: usize, name: &str) -> String {
        match self.find(index) {
            Some((_, part, _)) if matches!(part.shard, Shard::Json(_)) => {
                let images = &self.sources[part.source].images;
                images.join(name).display().to_string()
            }
            // No path has such a character.
            Some((_, part, row)) => format!("{}\u{1}{row}\u{1}{place}", part.path.display()),
            None => name.to_owned(),
        }
    }

    /// Size and CRC-32 of each file, without the bytes of pictures.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn sums(&self) -> Result<Vec<FileSum>, DataError> {
        self.parts.iter().map(Part::sum).collect()
    }
}

/// Size and checksum of a file of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSum {
    /// The file.
    pub path: PathBuf,
    /// Number of its source.
    pub source: usize,
    /// Its size.
    pub bytes: u64,
    /// CRC-32 (ISO-HDLC) of all that is no picture.
    pub crc32: u32,
}

impl Part {
    /// How a row is called in messages.
    fn place(&self, row: usize) -> String {
        match &self.shard {
            Shard::Tar(shard) => format!("sample {:?}", shard.key(row)),
            _ => format!("row {row}"),
        }
    }

    fn fault(&self, row: usize, reason: String, damaged: bool) -> DataError {
        DataError::Shard {
            path: self.path.clone(),
            place: self.place(row),
            reason,
            damaged,
        }
    }

    fn sum(&self) -> Result<FileSum, DataError> {
        let failed = |source| DataError::Io {
            path: self.path.clone(),
            source,
        };
        let mut hasher = crc32fast::Hasher::new();
        let (bytes, crc32) = match &self.shard {
            Shard::Json(manifest) => {
                let bytes = manifest.for_each_part(&mut |part| hasher.update(part));
                (bytes.map_err(failed)?, hasher.finalize())
            }
            Shard::Parquet(shard) => {
                let bytes = shard.for_each_text(&mut |part| hasher.update(part));
                (bytes.map_err(failed)?, hasher.finalize())
            }
            Shard::Tar(shard) => shard.sum(),
        };
        Ok(FileSum {
            path: self.path.clone(),
            source: self.source,
            bytes,
            crc32,
        })
    }
}

impl Shard {
    fn len(&self) -> usize {
        match self {
            Self::Json(manifest) => manifest.len(),
            Self::Parquet(shard) => shard.len(),
            Self::Tar(shard) => shard.len(),
        }
    }
}
