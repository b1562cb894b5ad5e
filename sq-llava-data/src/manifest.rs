//! LLaVA's instruction files, read lazily: a JSON array, or JSONL with one sample a line.
//!
//! Opening streams the file once and keeps where each sample begins; a sample is parsed when it
//! is asked for. A file of any size costs 16 bytes a sample.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::DataError;

/// A sample is text; one above this is a damaged file, not to be read into memory.
const MAX_SAMPLE_BYTES: u64 = 64 << 20;

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

/// One sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlavaSample {
    /// Its `id` as text; its index in the file where it has none.
    pub id: String,
    /// Paths of its images, as written; empty for text alone.
    pub images: Vec<String>,
    /// The messages.
    pub conversations: Vec<Message>,
}

#[derive(Deserialize)]
struct RawSample {
    #[serde(default)]
    id: Option<Id>,
    #[serde(default)]
    image: Option<Images>,
    #[serde(default)]
    images: Option<Images>,
    conversations: Vec<Message>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(serde_json::Number),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Images {
    One(String),
    Many(Vec<String>),
}

/// Only the id, for the message about a sample that is otherwise wrong.
#[derive(Deserialize)]
struct IdOnly {
    #[serde(default)]
    id: Option<Id>,
}

impl Id {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

/// Where a sample lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Element {
    offset: u64,
    bytes: u64,
}

/// An instruction file with the places of its samples.
#[derive(Debug)]
pub struct Manifest {
    path: PathBuf,
    file: Mutex<File>,
    elements: Vec<Element>,
    /// Places in the whole file, where this is a part of it.
    places: Option<Vec<usize>>,
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
        let mut file = File::open(&path).map_err(io)?;
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
            places: None,
        })
    }

    /// A part of the samples, by their indices. They keep their ids and offsets.
    ///
    /// # Errors
    /// If there is no sample of an index, or the file cannot be opened again.
    pub fn select(&self, indices: &[usize]) -> Result<Self, DataError> {
        let file = File::open(&self.path).map_err(|source| DataError::Io {
            path: self.path.clone(),
            source,
        })?;
        let mut elements = Vec::with_capacity(indices.len());
        for &index in indices {
            let element = self.elements.get(index).copied();
            elements.push(element.ok_or_else(|| self.no_sample(index))?);
        }
        let places = indices.iter().map(|&index| self.place(index)).collect();
        Ok(Self {
            path: self.path.clone(),
            file: Mutex::new(file),
            elements,
            places: Some(places),
        })
    }

    /// Place of a sample in the file.
    fn place(&self, index: usize) -> usize {
        let places = self.places.as_ref();
        places.map_or(index, |places| places[index])
    }

    fn no_sample(&self, index: usize) -> DataError {
        DataError::Manifest {
            path: self.path.clone(),
            sample: format!("sample #{index}"),
            offset: 0,
            reason: format!("there are only {} samples", self.len()),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a sample begins, in bytes from the start of the file.
    pub fn offset(&self, index: usize) -> Option<u64> {
        self.elements.get(index).map(|element| element.offset)
    }

    /// Reads one sample. May be called from several threads.
    ///
    /// # Errors
    /// If there is no such sample, or it is not LLaVA's; the message names its id and offset.
    pub fn get(&self, index: usize) -> Result<LlavaSample, DataError> {
        let fault = |sample: String, offset: u64, reason: String| DataError::Manifest {
            path: self.path.clone(),
            sample,
            offset,
            reason,
        };
        let Some(&Element { offset, bytes }) = self.elements.get(index) else {
            return Err(self.no_sample(index));
        };
        let place = self.place(index);
        let text = self.read(offset, bytes).map_err(|source| DataError::Io {
            path: self.path.clone(),
            source,
        })?;
        let raw: RawSample = serde_json::from_slice(&text).map_err(|e| {
            let id = serde_json::from_slice::<IdOnly>(&text).ok();
            let name = match id.and_then(|found| found.id) {
                Some(id) => format!("sample {:?}", id.text()),
                None => format!("sample #{place}"),
            };
            fault(name, offset, e.to_string())
        })?;
        Ok(LlavaSample {
            id: raw.id.map_or_else(|| place.to_string(), Id::text),
            images: match raw.image.or(raw.images) {
                None => Vec::new(),
                Some(Images::One(path)) => vec![path],
                Some(Images::Many(paths)) => paths,
            },
            conversations: raw.conversations,
        })
    }

    fn read(&self, offset: u64, bytes: u64) -> std::io::Result<Vec<u8>> {
        // `open` refuses elements above MAX_SAMPLE_BYTES, so this fits in memory.
        let mut text = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        // A panic while the lock was held leaves only the position behind, and we set that.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut text)?;
        Ok(text)
    }
}

/// What the file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Layout {
    #[default]
    Unknown,
    Array,
    Lines,
    /// After the array's `]`.
    Closed,
}

/// Finds the elements of the outermost list, byte by byte. All marks of JSON are ASCII, and no
/// byte of a longer UTF-8 character is.
#[derive(Debug, Default)]
struct Scanner {
    layout: Layout,
    position: u64,
    /// Nesting inside the element.
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// Where the element under way begins.
    start: Option<u64>,
    /// The array wants a comma (or its end) before the next element.
    needs_comma: bool,
    elements: Vec<Element>,
}

/// A fault of the list itself.
struct Fault {
    index: usize,
    offset: u64,
    reason: String,
}

impl Fault {
    fn at(self, path: &Path) -> DataError {
        DataError::Manifest {
            path: path.to_path_buf(),
            sample: format!("sample #{}", self.index),
            offset: self.offset,
            reason: self.reason,
        }
    }
}

impl Scanner {
    fn fault<T>(&self, reason: impl Into<String>) -> Result<T, Fault> {
        Err(Fault {
            index: self.elements.len(),
            offset: self.start.unwrap_or(self.position),
            reason: reason.into(),
        })
    }

    /// Passes over bytes that change nothing: the inside of a string, or of a line of JSONL.
    fn skip<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mark = match self.layout {
            Layout::Array if self.in_string && !self.escaped => memchr::memchr2(b'"', b'\\', bytes),
            Layout::Lines if self.start.is_some() => memchr::memchr(b'\n', bytes),
            _ => Some(0),
        };
        let (passed, rest) = bytes.split_at(mark.unwrap_or(bytes.len()));
        self.position += passed.len() as u64;
        rest
    }

    fn take(&mut self, byte: u8) -> Result<(), Fault> {
        match self.layout {
            Layout::Unknown => self.take_first(byte)?,
            Layout::Array => self.take_in_array(byte)?,
            Layout::Lines => self.take_in_lines(byte)?,
            Layout::Closed if byte.is_ascii_whitespace() => {}
            Layout::Closed => return self.fault("something follows the end of the array"),
        }
        self.position += 1;
        if let Some(start) = self.start
            && self.position - start > MAX_SAMPLE_BYTES
        {
            return self.fault("a sample above 64 MiB: is a bracket or a quote missing?");
        }
        Ok(())
    }

    fn take_first(&mut self, byte: u8) -> Result<(), Fault> {
        match byte {
            b'[' => self.layout = Layout::Array,
            b'{' => {
                self.layout = Layout::Lines;
                self.start = Some(self.position);
            }
            // A byte order mark.
            0xef | 0xbb | 0xbf if self.position < 3 => {}
            _ if byte.is_ascii_whitespace() => {}
            _ => return self.fault("neither a JSON array nor JSONL: expected `[` or `{` first"),
        }
        Ok(())
    }

    fn take_in_array(&mut self, byte: u8) -> Result<(), Fault> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(());
        }
        if self.start.is_some() {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        self.close(self.position + 1);
                        self.needs_comma = true;
                    }
                }
                _ => {}
            }
            return Ok(());
        }
        match byte {
            b'{' if !self.needs_comma => {
                self.start = Some(self.position);
                self.depth = 1;
            }
            b',' if self.needs_comma => self.needs_comma = false,
            b']' if self.needs_comma || self.elements.is_empty() => self.layout = Layout::Closed,
            _ if byte.is_ascii_whitespace() => {}
            _ if self.needs_comma => return self.fault("expected `,` or `]` after a sample"),
            _ => return self.fault("expected a sample (an object)"),
        }
        Ok(())
    }

    fn take_in_lines(&mut self, byte: u8) -> Result<(), Fault> {
        match byte {
            b'\n' => {
                if self.start.is_some() {
                    self.close(self.position);
                }
            }
            _ if self.start.is_some() || byte.is_ascii_whitespace() => {}
            b'{' => self.start = Some(self.position),
            _ => return self.fault("expected a sample (an object) on each line"),
        }
        Ok(())
    }

    fn close(&mut self, end: u64) {
        if let Some(offset) = self.start.take() {
            self.elements.push(Element {
                offset,
                bytes: end - offset,
            });
        }
    }

    fn finish(mut self) -> Result<Vec<Element>, Fault> {
        match self.layout {
            Layout::Unknown => self.fault("the file is empty"),
            Layout::Array if self.start.is_some() => {
                self.fault("the file ends inside a sample: is it cut short?")
            }
            Layout::Array => self.fault("the array is not closed: is the file cut short?"),
            Layout::Lines => {
                self.close(self.position);
                Ok(self.elements)
            }
            Layout::Closed => Ok(self.elements),
        }
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
