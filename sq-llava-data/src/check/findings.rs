//! What can be found in a data set, and a list of it that does not grow without bound.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

/// Whether training would stop at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Training stops, or needs another `bad_images`.
    Error,
    /// Training continues, perhaps not as intended.
    Warning,
}

/// What can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A sample is not LLaVA's: a key is missing or of the wrong type, or a role is unknown.
    Malformed,
    /// Bytes of a shard are damaged or cut off: the sample, or what follows it, cannot be read.
    DamagedShard,
    /// Questions and answers do not alternate, there is no question, the `<image>` marks do not
    /// fit the number of images, or the template has no place for a role.
    Conversation,
    /// An image file is not there.
    MissingImage,
    /// An image file cannot be decoded.
    BadImage,
    /// A JPEG is damaged, but decodes as far as it goes.
    DamagedImage,
    /// The masks of an image are damaged, of another size, or there twice.
    BadMask,
    /// The extension of an image says another format than its content.
    WrongExtension,
    /// Several samples have one id: their draws of asked turns are the same.
    DuplicateId,
    /// A human turn says nothing and shows nothing.
    EmptyQuestion,
    /// An answer says nothing.
    EmptyAnswer,
    /// The first message is an answer, which is left out.
    AnswerFirst,
    /// The last question has no answer.
    OpenEnd,
    /// There is an image but no `<image>` mark: it is shown in the first turn.
    NoMark,
    /// The mark of the only image is not the first thing in the first human turn, or there are
    /// several: it is moved there.
    MovedMark,
    /// An answer has an `<image>` mark, which is taken out.
    MarkInAnswer,
    /// There is an `<image>` mark but no image: it stays as text.
    MarkWithoutImage,
    /// The sample is longer than allowed and is cut.
    Truncated,
    /// Nothing of the sample is learnt.
    NothingLearnt,
}

impl FindingKind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::DamagedShard => "damaged_shard",
            Self::Conversation => "conversation",
            Self::MissingImage => "missing_image",
            Self::BadImage => "bad_image",
            Self::DamagedImage => "damaged_image",
            Self::BadMask => "bad_mask",
            Self::WrongExtension => "wrong_extension",
            Self::DuplicateId => "duplicate_id",
            Self::EmptyQuestion => "empty_question",
            Self::EmptyAnswer => "empty_answer",
            Self::AnswerFirst => "answer_first",
            Self::OpenEnd => "open_end",
            Self::NoMark => "no_mark",
            Self::MovedMark => "moved_mark",
            Self::MarkInAnswer => "mark_in_answer",
            Self::MarkWithoutImage => "mark_without_image",
            Self::Truncated => "truncated",
            Self::NothingLearnt => "nothing_learnt",
        }
    }

    /// Whether training would stop at it.
    pub(crate) fn severity(self) -> Severity {
        match self {
            Self::Malformed
            | Self::DamagedShard
            | Self::Conversation
            | Self::MissingImage
            | Self::BadImage
            | Self::BadMask => Severity::Error,
            _ => Severity::Warning,
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file of the sample.
    pub file: PathBuf,
    /// Where the sample begins there, in bytes; in Parquet its row.
    pub offset: u64,
    /// Id of the sample, for an image of the first that names it.
    pub sample: String,
    /// Path of the image, as the manifest writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Samples that name the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<u32>,
    /// What is wrong.
    pub detail: String,
}

/// Sample and place in it; findings are listed in this order.
pub(super) type Place = (usize, usize);

/// Findings by kind: all counted, the first ones kept.
#[derive(Debug)]
pub(super) struct Findings {
    limit: usize,
    kinds: BTreeMap<FindingKind, (usize, BTreeMap<Place, Finding>)>,
}

impl Findings {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            kinds: BTreeMap::new(),
        }
    }

    /// Counts a finding; `finding` is called if it is to be kept.
    pub fn add(&mut self, kind: FindingKind, place: Place, finding: impl FnOnce() -> Finding) {
        let (count, kept) = self.kinds.entry(kind).or_default();
        *count += 1;
        let full = kept.len() >= self.limit;
        if full && kept.last_key_value().is_none_or(|(last, _)| *last < place) {
            return;
        }
        kept.insert(place, finding());
        if kept.len() > self.limit {
            kept.pop_last();
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (kind, (count, kept)) in other.kinds {
            let before = self.kinds.get(&kind).map_or(0, |(count, _)| *count);
            for (place, finding) in kept {
                self.add(kind, place, || finding);
            }
            self.kinds.entry(kind).or_default().0 = before + count;
        }
    }

    pub(crate) fn into_kinds(self) -> impl Iterator<Item = (FindingKind, usize, Vec<Finding>)> {
        let kinds = self.kinds.into_iter();
        kinds.map(|(kind, (count, kept))| (kind, count, kept.into_values().collect()))
    }
}
