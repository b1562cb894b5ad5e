//! LLaVA's instruction files, read lazily: a JSON array, or JSONL with one sample a line. The turns
//! of a sample are its `conversations`, or `messages` as chat programs have them.
//!
//! Opening streams a file once and keeps where each sample begins; a sample is parsed when it is
//! asked for. A file of any size costs 16 bytes a sample.

mod messages;
mod sample;
mod scan;

use std::io::{ErrorKind, Read};
use std::path::Path;

use bytes::Bytes;
use serde::Deserialize;

use crate::DataError;
use crate::blob::Blob;
use sample::{IdOnly, RawSample};
pub(crate) use scan::MAX_SAMPLE_BYTES;
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

/// An instruction file with the places of its samples.
#[derive(Debug)]
pub struct Manifest {
    blob: Blob,
    elements: Vec<Element>,
}

/// A sample from the bytes of its object; `number` is its id where it has none.
pub(crate) fn sample_of(text: &[u8], number: &str) -> Result<LlavaSample, String> {
    let raw: RawSample = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    raw.sample(number)
}

impl Manifest {
    /// Indexes a file: an array if its first character is `[`, else one sample a line.
    ///
    /// # Errors
    /// If it cannot be read, or is cut short or otherwise no list of objects.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref().to_path_buf();
        let io = |source| DataError::Io {
            path: path.clone(),
            source,
        };
        let blob = Blob::keep(&path)?;
        let mut file = blob.reader(0).map_err(io)?;
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
        Ok(Self { blob, elements })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Where a sample begins, in bytes from the start of the file.
    pub fn offset(&self, index: usize) -> Option<u64> {
        Some(self.elements.get(index)?.offset)
    }

    /// Reads one sample. May be called from several threads.
    ///
    /// # Errors
    /// If there is no sample `index`, or it is not LLaVA's; the message names its id and offset.
    pub fn get(&self, index: usize) -> Result<LlavaSample, DataError> {
        self.parse(index, index, sample_of)
    }

    /// The same with another number, by which `read` calls it where it has no id.
    pub(crate) fn parse(
        &self,
        index: usize,
        number: usize,
        read: impl Fn(&[u8], &str) -> Result<LlavaSample, String>,
    ) -> Result<LlavaSample, DataError> {
        let element = self.element(index)?;
        let fault = |sample: String, reason: String| DataError::Manifest {
            path: self.blob.path().to_path_buf(),
            sample,
            offset: element.offset,
            reason,
        };
        let unnamed = || format!("sample #{number}");
        let text = self
            .read(element)
            .map_err(|error| fault(unnamed(), format!("cannot be read any more: {error}")))?;
        read(&text, &number.to_string()).map_err(|reason: String| {
            let id = serde_json::from_slice::<IdOnly>(&text).ok();
            let name = match id.and_then(|found| found.id) {
                Some(id) => format!("sample {:?}", id.text()),
                None => unnamed(),
            };
            fault(name, reason)
        })
    }

    /// One object of the file as it stands there, whatever it holds.
    ///
    /// # Errors
    /// If there is no such object, or the file cannot be read.
    pub fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let found = self.read(self.element(index)?);
        found.map(Vec::from).map_err(|source| DataError::Io {
            path: self.blob.path().to_path_buf(),
            source,
        })
    }

    fn element(&self, index: usize) -> Result<Element, DataError> {
        let element = self.elements.get(index);
        element.copied().ok_or_else(|| DataError::Manifest {
            path: self.blob.path().to_path_buf(),
            sample: format!("sample #{index}"),
            offset: 0,
            reason: format!("there are only {} samples", self.len()),
        })
    }

    fn read(&self, Element { offset, bytes }: Element) -> std::io::Result<Bytes> {
        // The scanner refuses elements above its limit, so this fits in memory.
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.blob.read_at(offset, bytes)
    }

    /// Calls `sink` with all bytes of the file.
    pub(crate) fn for_each_part(&self, sink: &mut dyn FnMut(&[u8])) -> std::io::Result<u64> {
        let (mut at, len) = (0, self.blob.len());
        while at < len {
            let bytes = (len - at).min(BUFFER_BYTES as u64);
            sink(&self.blob.read_at(at, bytes as usize)?);
            at += bytes;
        }
        Ok(len)
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
