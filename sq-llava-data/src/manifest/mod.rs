//! LLaVA's instruction files, read lazily: a JSON array, or JSONL with one sample a line. The turns
//! of a sample are its `conversations`, or `messages` as chat programs have them.
//!
//! Opening streams a file once and keeps where each sample begins; a sample is parsed when it is
//! asked for. A file of any size costs 16 bytes a sample. Several files can stand for one.

mod messages;
mod sample;
mod scan;

use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use crate::{DataError, files};
use sample::{IdOnly, RawSample};
use scan::{Element, Scanner};

/// How a message, and the text of a prompt, writes an image.
pub const IMAGE_TOKEN: &str = "<image>";

/// Bytes read at a time while indexing.
const BUFFER_BYTES: usize = 1 << 20;

/// Who speaks in a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Author {
    /// `human` (or `user`).
    #[serde(rename = "human", alias = "user")]
    Human,
    /// `gpt` (or `assistant`).
    #[serde(rename = "gpt", alias = "assistant")]
    Gpt,
    /// `vuser`: a question for the model to ask, whatever is drawn.
    #[serde(rename = "vuser")]
    Vuser,
}

/// One message of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// Who says it.
    pub from: Author,
    /// What is said; `<image>` marks an image.
    pub value: String,
}

/// One sample. Keys of the file that are not here are passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlavaSample {
    /// Its `id` as text; its number in the files where it has none.
    pub id: String,
    /// Paths of its images, as written; empty for text alone (`image` absent, null or empty).
    pub images: Vec<String>,
    /// What the system says first, in place of the template's own.
    pub system: Option<String>,
    /// The messages.
    pub conversations: Vec<Message>,
}

/// One file with the places of its samples.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: Mutex<File>,
    elements: Vec<Element>,
    /// Number of the samples in the parts before.
    start: usize,
}

/// Instruction files with the places of their samples, numbered through.
#[derive(Debug)]
pub struct Manifest {
    parts: Arc<[Part]>,
    /// Numbers of the samples, where these are not all that the files have.
    chosen: Option<Vec<usize>>,
}

impl Manifest {
    /// Indexes a file: an array if its first character is `[`, else one sample a line.
    ///
    /// # Errors
    /// If it cannot be read, or is cut short or otherwise no list of objects.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        Self::open_all(&[path])
    }

    /// Indexes several files as one, in the order given.
    ///
    /// # Errors
    /// As [`Self::open`], for the first file that is not in order.
    pub fn open_all<P: AsRef<Path>>(paths: &[P]) -> Result<Self, DataError> {
        let mut parts = Vec::with_capacity(paths.len());
        let mut start = 0;
        for path in paths {
            let part = Part::open(path.as_ref(), start)?;
            start += part.elements.len();
            parts.push(part);
        }
        Ok(Self {
            parts: parts.into(),
            chosen: None,
        })
    }

    /// A part of the samples, by their indices. They keep their ids and offsets.
    ///
    /// # Errors
    /// If there is no sample of an index.
    pub fn select(&self, indices: &[usize]) -> Result<Self, DataError> {
        if let Some(&index) = indices.iter().find(|&&index| index >= self.len()) {
            return Err(self.no_sample(index));
        }
        let number = |&index: &usize| self.chosen.as_ref().map_or(index, |c| c[index]);
        Ok(Self {
            parts: self.parts.clone(),
            chosen: Some(indices.iter().map(number).collect()),
        })
    }

    fn no_sample(&self, index: usize) -> DataError {
        DataError::Manifest {
            path: self
                .parts
                .first()
                .map_or_else(PathBuf::new, |part| part.path.clone()),
            sample: format!("sample #{index}"),
            offset: 0,
            reason: format!("there are only {} samples", self.len()),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        match (&self.chosen, self.parts.last()) {
            (Some(chosen), _) => chosen.len(),
            (None, Some(last)) => last.start + last.elements.len(),
            (None, None) => 0,
        }
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A sample's number in all files, the file that holds it, and its place there.
    fn find(&self, index: usize) -> Option<(usize, &Part, Element)> {
        let number = match &self.chosen {
            None => index,
            Some(chosen) => *chosen.get(index)?,
        };
        let after = self.parts.partition_point(|part| part.start <= number);
        let part = self.parts.get(after.checked_sub(1)?)?;
        let element = part.elements.get(number - part.start)?;
        Some((number, part, *element))
    }

    /// Number of samples of each file that was opened, chosen or not.
    pub fn part_lengths(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().map(|part| part.elements.len())
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

    /// Where a sample begins, in bytes from the start of its file.
    pub fn offset(&self, index: usize) -> Option<u64> {
        Some(self.find(index)?.2.offset)
    }

    /// Reads one sample. May be called from several threads.
    ///
    /// # Errors
    /// If there is no sample `index`, or it is not LLaVA's; the message names its id and offset.
    pub fn get(&self, index: usize) -> Result<LlavaSample, DataError> {
        let Some((number, part, element)) = self.find(index) else {
            return Err(self.no_sample(index));
        };
        let fault = |sample: String, reason: String| DataError::Manifest {
            path: part.path.clone(),
            sample,
            offset: element.offset,
            reason,
        };
        let unnamed = || format!("sample #{number}");
        let text = part
            .read(element)
            .map_err(|error| fault(unnamed(), format!("cannot be read any more: {error}")))?;
        let read = || {
            let raw: RawSample = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
            raw.sample(number)
        };
        read().map_err(|reason: String| {
            let id = serde_json::from_slice::<IdOnly>(&text).ok();
            let name = match id.and_then(|found| found.id) {
                Some(id) => format!("sample {:?}", id.text()),
                None => unnamed(),
            };
            fault(name, reason)
        })
    }

    /// One object of the files as it stands there, whatever it holds.
    ///
    /// # Errors
    /// If there is no such object, or its file cannot be read.
    pub fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let Some((_, part, element)) = self.find(index) else {
            return Err(self.no_sample(index));
        };
        part.read(element).map_err(|source| DataError::Io {
            path: part.path.clone(),
            source,
        })
    }
}

impl Part {
    fn open(path: &Path, start: usize) -> Result<Self, DataError> {
        let path = path.to_path_buf();
        let io = |source| DataError::Io {
            path: path.clone(),
            source,
        };
        let mut file = files::open(&path)?;
        let mut scanner = Scanner::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(io(e)),
            };
            let mut rest = &buffer[..read];
            while let Some((&byte, after)) = scanner.skip(rest).split_first() {
                scanner.take(byte).map_err(|f| f.at(&path))?;
                rest = after;
            }
        }
        let elements = scanner.finish().map_err(|f| f.at(&path))?;
        Ok(Self {
            path,
            file: Mutex::new(file),
            elements,
            start,
        })
    }

    fn read(&self, Element { offset, bytes }: Element) -> std::io::Result<Vec<u8>> {
        // The scanner refuses elements above its limit, so this fits in memory.
        let mut text = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        // A panic while the lock was held can only leave a wrong position, and it is set here.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> (tempfile::TempDir, Result<Manifest, DataError>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, text).unwrap();
        let manifest = Manifest::open(&path);
        (dir, manifest)
    }

    const SAMPLES: [&str; 3] = [
        r#"{"id": "a\"]},{", "image": "x.jpg", "conversations":
            [{"from": "human", "value": "<image>\n{[\\"}, {"from": "gpt", "value": "漢\u00e9"}]}"#,
        r#"{"conversations": [{"from": "user", "value": ""}], "extra": {"deep": [[1]]}}"#,
        r#"{"id": 7, "image": ["1.png", "2.png"], "source": "s",
            "conversations": [{"from": "vuser", "value": "q", "weight": 1}]}"#,
    ];

    fn check(manifest: &Manifest, text: &str) {
        assert_eq!(manifest.len(), 3);
        // Backwards, so that the position left by the read before does not help.
        let third = manifest.get(2).unwrap();
        assert_eq!((third.id.as_str(), third.images.len()), ("7", 2));
        assert_eq!(third.conversations[0].from, Author::Vuser);
        let second = manifest.get(1).unwrap();
        assert_eq!((second.id.as_str(), second.images.len()), ("1", 0));
        assert_eq!(second.conversations[0].from, Author::Human);
        let first = manifest.get(0).unwrap();
        assert_eq!(
            (first.id.as_str(), first.images[0].as_str()),
            ("a\"]},{", "x.jpg")
        );
        assert_eq!(first.conversations[0].value, "<image>\n{[\\");
        assert_eq!(first.conversations[1].value, "漢é");
        let offset = usize::try_from(manifest.offset(2).unwrap()).unwrap();
        assert!(text[offset..].starts_with(r#"{"id": 7"#));
    }

    #[test]
    fn an_array_is_read_by_offset() {
        let text = format!("\u{feff} [\n{}\n]\n", SAMPLES.join(" ,\n"));
        let (_dir, manifest) = open(&text);
        check(&manifest.unwrap(), &text);
        assert!(open("[ ]").1.unwrap().is_empty());
    }

    #[test]
    fn lines_are_read_by_offset() {
        let text = SAMPLES.map(|s| s.replace('\n', " ")).join("\r\n\n");
        let (_dir, manifest) = open(&text);
        check(&manifest.unwrap(), &text);
    }

    #[test]
    fn a_bad_sample_is_named_with_its_offset() {
        let text = r#"[{"conversations": []}, {"id": "x9", "conversations": [{"from": "bot", "value": ""}]}]"#;
        let (_dir, manifest) = open(text);
        let manifest = manifest.unwrap();
        assert!(manifest.get(0).unwrap().conversations.is_empty());
        let error = manifest.get(1).unwrap_err().to_string();
        for part in ["data.json", "x9", "at byte 24", "bot"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(manifest.get(2).unwrap_err().to_string().contains("only 2"));
    }

    #[test]
    fn a_broken_list_is_refused() {
        for (text, reason) in [
            ("", "empty"),
            ("hello", "neither"),
            (r#"[{"a": "]"#, "cut short"),
            (r#"[{"a": 1}, "#, "not closed"),
            (r#"[{"a": 1} {"b": 2}]"#, "expected `,`"),
            (r#"[{"a": 1}, ]"#, "expected a sample"),
            ("[1]", "expected a sample"),
            ("[{}] x", "follows"),
            ("{}\nfoo\n", "on each line"),
        ] {
            let error = open(text).1.unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_image_may_be_null_or_empty() {
        let of = |image: &str| {
            let (_dir, manifest) = open(&format!(
                r#"{{"image": {image}, "conversations": [], "image_size": {{"w": 1}}}}"#
            ));
            manifest.unwrap().get(0)
        };
        for image in ["null", r#""""#, "[]", r#"[null, ""]"#] {
            assert!(of(image).unwrap().images.is_empty(), "{image}");
        }
        assert_eq!(of(r#"["", "a.png"]"#).unwrap().images, ["a.png"]);
        let error = of("5").unwrap_err().to_string();
        assert!(error.contains("neither a string nor a list"), "{error}");
    }

    #[test]
    fn several_files_are_one_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a.json", "empty.json", "b.jsonl"].map(|name| dir.path().join(name));
        std::fs::write(&paths[0], format!("[{}, {}]", SAMPLES[0], SAMPLES[1])).unwrap();
        std::fs::write(&paths[1], "[]").unwrap();
        std::fs::write(&paths[2], SAMPLES[2].replace('\n', " ")).unwrap();
        let manifest = Manifest::open_all(&paths).unwrap();
        assert_eq!(manifest.len(), 3);
        assert_eq!(manifest.get(1).unwrap().id, "1");
        assert_eq!(manifest.get(2).unwrap().id, "7");
        assert_eq!(manifest.path(1), Some(&*paths[0]));
        assert_eq!(manifest.path(2), Some(&*paths[2]));
        assert_eq!((manifest.offset(2), manifest.offset(3)), (Some(0), None));
        assert!(Manifest::open_all::<PathBuf>(&[]).unwrap().is_empty());

        let part = manifest.select(&[2, 1]).unwrap();
        assert_eq!((part.len(), part.path(0)), (2, Some(&*paths[2])));
        // Its number in all files, because it has no id.
        assert_eq!(part.get(1).unwrap().id, "1");
        assert_eq!(part.select(&[1]).unwrap().get(0).unwrap().id, "1");
        assert!(part.select(&[2]).is_err() && part.get(2).is_err());
        let none = dir.path().join("none.json");
        let error = Manifest::open_all(&[&paths[0], &none]).unwrap_err();
        assert!(error.to_string().contains("none.json"), "{error}");
    }

    #[test]
    fn a_file_that_changed_is_named_with_the_sample() {
        let (dir, manifest) = open(&format!("[{}]", SAMPLES.join(",")));
        let manifest = manifest.unwrap();
        std::fs::write(dir.path().join("data.json"), "[]").unwrap();
        let error = manifest.get(2).unwrap_err().to_string();
        assert!(
            error.contains("sample #2 at byte") && error.contains("any more"),
            "{error}"
        );
    }

    #[test]
    fn several_threads_read_at_once() {
        let text = format!("[{}]", SAMPLES.join(","));
        let (_dir, manifest) = open(&text);
        let manifest = manifest.unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| check(&manifest, &text)));
            }
        });
    }
}
