//! The first pass: every sample is read, and encoded where there is a tokenizer.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;

use super::CheckOptions;
use super::findings::{Finding, FindingKind, Findings};
use crate::lengths::estimate;
use crate::manifest::{Author, LlavaSample};
use crate::mix::fnv1a;
use crate::parallel::on_threads;
use crate::source::DataSet;
use crate::text::conversation::{Ending, IMAGE_TOKEN};
use crate::text::sample::{conversation_of, marks, spoken, strip};
use crate::text::segments::TokenRole;
use crate::{DataError, Template, encode_sample};

/// Upper ends of the bins of the length histogram; a last bin has the rest.
pub(super) const BINS: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// An image file: the first sample that names it, its place there, and how many name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageUse {
    pub sample: usize,
    pub place: usize,
    pub samples: u32,
}

/// Numbers of the samples.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    pub readable: usize,
    pub messages: usize,
    pub with_image: usize,
    pub images_named: usize,
    /// Samples by their number of `<image>` marks.
    pub marks: BTreeMap<usize, usize>,
    pub lengths: Lengths,
}

/// Lengths in tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct Lengths {
    pub samples: usize,
    pub total: usize,
    pub shortest: usize,
    pub longest: usize,
    pub bins: [usize; BINS.len() + 1],
    pub truncated: usize,
    pub cut_tokens: usize,
}

impl Lengths {
    fn add(&mut self, tokens: usize, cut: usize) {
        let first = self.samples == 0;
        self.shortest = if first {
            tokens
        } else {
            self.shortest.min(tokens)
        };
        self.longest = self.longest.max(tokens);
        self.samples += 1;
        self.total += tokens;
        self.bins[BINS.partition_point(|&end| end < tokens)] += 1;
        self.truncated += usize::from(cut > 0);
        self.cut_tokens += cut;
    }

    fn merge(&mut self, other: &Self) {
        if other.samples == 0 {
            return;
        }
        let first = self.samples == 0;
        self.shortest = match first {
            true => other.shortest,
            false => self.shortest.min(other.shortest),
        };
        self.longest = self.longest.max(other.longest);
        self.samples += other.samples;
        self.total += other.total;
        for (bin, more) in self.bins.iter_mut().zip(other.bins) {
            *bin += more;
        }
        self.truncated += other.truncated;
        self.cut_tokens += other.cut_tokens;
    }
}

impl Counts {
    fn merge(&mut self, other: &Self) {
        self.readable += other.readable;
        self.messages += other.messages;
        self.with_image += other.with_image;
        self.images_named += other.images_named;
        for (marks, samples) in &other.marks {
            *self.marks.entry(*marks).or_default() += samples;
        }
        self.lengths.merge(&other.lengths);
    }
}

/// What the first pass knows in the end.
pub(super) struct Samples {
    pub counts: Counts,
    pub findings: Findings,
    /// Every image file once, in the order of the samples.
    pub images: Vec<ImageUse>,
}

/// What was seen of some samples.
struct Seen {
    counts: Counts,
    findings: Findings,
    /// Hash of each id, and the sample. Sixty-four bits: two ids out of a million fall together
    /// once in thirty million data sets.
    ids: Vec<(u64, usize)>,
    images: HashMap<u64, ImageUse>,
}

pub(super) fn scan(
    data: &DataSet,
    options: &CheckOptions<'_>,
    tick: &(impl Fn() + Sync),
) -> Result<Samples, DataError> {
    let start = || Seen {
        counts: Counts::default(),
        findings: Findings::new(options.listed),
        ids: Vec::new(),
        images: HashMap::new(),
    };
    let mut all = on_threads(options.threads, || {
        let samples = (0..data.len()).into_par_iter();
        let parts = samples.fold(start, |mut seen, index| {
            seen.look(data, options, index);
            tick();
            seen
        });
        Ok(parts.reduce(start, Seen::merged))
    })?;
    all.find_duplicates(data);
    for (number, torn) in data.damage().iter().enumerate() {
        let finding = || damaged(torn);
        all.findings
            .add(FindingKind::DamagedShard, (data.len(), number), finding);
    }
    let mut images: Vec<ImageUse> = all.images.into_values().collect();
    images.sort_unstable_by_key(|image| (image.sample, image.place));
    Ok(Samples {
        counts: all.counts,
        findings: all.findings,
        images,
    })
}

impl ImageUse {
    fn merge(&mut self, other: &Self) {
        self.samples += other.samples;
        if (other.sample, other.place) < (self.sample, self.place) {
            (self.sample, self.place) = (other.sample, other.place);
        }
    }
}

/// One spelling of a path: `./a//b` is `a/b`.
fn path_hash(path: &str) -> u64 {
    let parts = Path::new(path).components();
    let parts = parts.filter(|part| !matches!(part, Component::CurDir));
    let spelt: Vec<_> = parts
        .map(|part| part.as_os_str().to_string_lossy())
        .collect();
    fnv1a(spelt.join("/").as_bytes())
}

impl Seen {
    fn merged(mut self, other: Self) -> Self {
        self.counts.merge(&other.counts);
        self.findings.merge(other.findings);
        self.ids.extend(other.ids);
        for (hash, found) in other.images {
            self.images
                .entry(hash)
                .and_modify(|known| known.merge(&found))
                .or_insert(found);
        }
        self
    }

    fn look(&mut self, data: &DataSet, options: &CheckOptions<'_>, index: usize) {
        let sample = match data.get(index) {
            Ok(sample) => sample,
            Err(error) => return self.unreadable(data, error, index),
        };
        self.ids.push((fnv1a(sample.id.as_bytes()), index));
        self.note_images(data, &sample, index);
        let total: usize = sample.conversations.iter().map(marks).sum();
        let counts = &mut self.counts;
        counts.readable += 1;
        counts.messages += sample.conversations.len();
        counts.with_image += usize::from(!sample.images.is_empty());
        counts.images_named += sample.images.len();
        *counts.marks.entry(total).or_default() += 1;
        let mut add = |kind, place, detail: String| {
            let finding = || finding(data, index, sample.id.clone(), detail);
            self.findings.add(kind, (index, place), finding);
        };
        look_at_turns(&sample, &mut add);
        look_at_marks(&sample, total, &mut add);
        let (tokens, cut) = match options.labels {
            None => (estimate(&sample, 0), 0),
            Some((tokenizer, labels)) => match encode_sample(tokenizer, &sample, &[], labels) {
                Ok(encoded) => {
                    if encoded.count(TokenRole::Answer) + encoded.count(TokenRole::Question) == 0 {
                        add(FindingKind::NothingLearnt, 0, "no token is learnt".into());
                    }
                    let cut = encoded.cut.map_or(0, |cut| cut.tokens);
                    let text = encoded.input_ids.len() - encoded.images;
                    let whole = text + encoded.images * labels.tokens_per_image + cut;
                    if cut > 0 {
                        let max = labels.max_length.unwrap_or(whole);
                        let detail = format!("{whole} tokens, {cut} cut off for at most {max}");
                        add(FindingKind::Truncated, 0, detail);
                    }
                    (whole, cut)
                }
                Err(error) => {
                    add(FindingKind::Conversation, 0, reason(error));
                    return;
                }
            },
        };
        if options.labels.is_none() {
            // Any template that can ask will do: the order of turns is the same in all.
            let conversation = conversation_of(&sample, Template::Sq, None, &[]);
            if let Err(error) = conversation.and_then(|c| c.prompt(Ending::Closed)) {
                add(FindingKind::Conversation, 0, reason(error));
                return;
            }
        }
        self.counts.lengths.add(tokens, cut);
    }

    /// Lists a sample that cannot be read.
    fn unreadable(&mut self, data: &DataSet, error: DataError, index: usize) {
        let kind = match error.is_damage() {
            true => FindingKind::DamagedShard,
            false => FindingKind::Malformed,
        };
        let (name, detail) = match error {
            DataError::Manifest { sample, reason, .. } => (sample, reason),
            DataError::Shard { place, reason, .. } => (place, reason),
            other => (format!("#{index}"), other.to_string()),
        };
        let name = name.trim_start_matches("sample ").trim_matches('"');
        let finding = || finding(data, index, name.to_owned(), detail);
        self.findings.add(kind, (index, 0), finding);
    }

    fn note_images(&mut self, data: &DataSet, sample: &LlavaSample, index: usize) {
        for (place, path) in sample.images.iter().enumerate() {
            let found = ImageUse {
                sample: index,
                place,
                samples: 1,
            };
            self.images
                .entry(path_hash(&data.picture_key(index, place, path)))
                .and_modify(|known| known.merge(&found))
                .or_insert(found);
        }
    }

    fn find_duplicates(&mut self, data: &DataSet) {
        self.ids.sort_unstable();
        for same in self.ids.chunk_by(|a, b| a.0 == b.0) {
            for &(_, index) in &same[1..] {
                let first = same[0].1;
                let name = data.get(index).map(|sample| sample.id);
                let detail = format!("sample #{first} has this id too");
                let finding = || finding(data, index, name.unwrap_or_default(), detail);
                self.findings
                    .add(FindingKind::DuplicateId, (index, 0), finding);
            }
        }
        self.ids = Vec::new();
    }
}

/// What an error says, without the sample's name, which the finding has.
fn reason(error: DataError) -> String {
    match error {
        DataError::Conversation { reason, .. } => reason,
        other => other.to_string(),
    }
}

pub(super) fn finding(data: &DataSet, index: usize, sample: String, detail: String) -> Finding {
    Finding {
        file: data.path(index).map(Path::to_path_buf).unwrap_or_default(),
        offset: data.offset(index).unwrap_or_default(),
        sample,
        image: None,
        samples: None,
        detail,
    }
}

/// A file that is cut short.
fn damaged(torn: &DataError) -> Finding {
    let (file, sample, detail) = match torn {
        DataError::Shard {
            path,
            place,
            reason,
            ..
        } => (path.clone(), place.clone(), reason.clone()),
        other => (PathBuf::new(), String::new(), other.to_string()),
    };
    Finding {
        file,
        offset: 0,
        sample,
        image: None,
        samples: None,
        detail,
    }
}

fn look_at_turns(sample: &LlavaSample, add: &mut impl FnMut(FindingKind, usize, String)) {
    let messages = &sample.conversations;
    let shown = !sample.images.is_empty();
    let first_question = messages.iter().position(|m| m.from != Author::Gpt);
    for (place, message) in messages.iter().enumerate() {
        let bare = match shown {
            true => strip(&message.value.replace(IMAGE_TOKEN, "")).is_empty(),
            false => strip(&message.value).is_empty(),
        };
        // A turn that shows an image says enough.
        let shows = shown && (marks(message) > 0 || Some(place) == first_question);
        let number = place + 1;
        match message.from {
            Author::Gpt if bare => {
                let detail = format!("message {number}, an answer, is empty");
                add(FindingKind::EmptyAnswer, place, detail);
            }
            Author::Human | Author::Vuser if bare && !shows => {
                let detail = format!("message {number}, a question, is empty");
                add(FindingKind::EmptyQuestion, place, detail);
            }
            _ => {}
        }
    }
    let spoken = spoken(sample);
    if spoken.len() < messages.len() {
        add(FindingKind::AnswerFirst, 0, "message 1 is an answer".into());
    }
    if spoken.last().is_some_and(|last| last.from != Author::Gpt) {
        let place = messages.len() - 1;
        add(
            FindingKind::OpenEnd,
            place,
            "the last question has no answer".into(),
        );
    }
}

fn look_at_marks(
    sample: &LlavaSample,
    total: usize,
    add: &mut impl FnMut(FindingKind, usize, String),
) {
    let messages = spoken(sample);
    if sample.images.is_empty() {
        if total > 0 {
            let detail = format!("{total} `{IMAGE_TOKEN}` marks and no image");
            add(FindingKind::MarkWithoutImage, 0, detail);
        }
        return;
    }
    let in_answers: usize = messages
        .iter()
        .filter(|message| message.from == Author::Gpt)
        .map(marks)
        .sum();
    if in_answers > 0 {
        let detail = format!("{in_answers} `{IMAGE_TOKEN}` marks in answers");
        add(FindingKind::MarkInAnswer, 0, detail);
    }
    if total == in_answers {
        let detail = format!("{} images and no `{IMAGE_TOKEN}`", sample.images.len());
        add(FindingKind::NoMark, 0, detail);
        return;
    }
    let first = messages.first();
    let leads = first.is_some_and(|m| strip(&m.value).starts_with(IMAGE_TOKEN));
    if sample.images.len() == 1 && !(leads && total - in_answers == 1) {
        let found = messages
            .iter()
            .position(|m| m.from != Author::Gpt && marks(m) > 0);
        let detail = match (total - in_answers, found) {
            (1, Some(0)) => "the mark is inside the first turn".into(),
            (1, Some(place)) => format!("the mark is in message {}", place + 1),
            (count, _) => format!("{count} marks for one image"),
        };
        add(FindingKind::MovedMark, 0, detail);
    }
}
