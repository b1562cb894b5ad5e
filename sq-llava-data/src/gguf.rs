//! The header of a GGUF file: metadata and the list of tensors
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3).
//!
//! Only the header is read. Every count is held against the length of the file before anything
//! is allocated for it.

mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::{DataError, files};
pub use write::{GgufField, GgufOutput, write_gguf};

/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Arrays of arrays nest no deeper.
const MAX_NESTING: usize = 4;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Any signed or unsigned integer.
    Integer(i128),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Integers of one width, or truth values as 0 and 1.
    Integers(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// Texts.
    Texts(Vec<String>),
    /// Any other array.
    Array(Vec<GgufValue>),
}

/// One line of the list of tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name in the file.
    pub name: String,
    /// Row-major shape, outermost dimension first (the file lists it the other way round).
    pub shape: Vec<usize>,
    /// Number of the element type (`ggml_type`).
    pub kind: u32,
    /// Byte offset from the start of the file.
    pub start: u64,
}

/// Metadata and tensors of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufHeader {
    /// The file.
    pub path: PathBuf,
    /// Values by key.
    pub metadata: BTreeMap<String, GgufValue>,
    /// The tensors in the order of the file.
    pub tensors: Vec<GgufTensor>,
}

/// Whether a path is that of a GGUF file, by its name.
pub fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
        && path.is_file()
}

impl GgufHeader {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// If the file cannot be read, is no GGUF file of a known version, or is cut short.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = files::open(path)?;
        let length = file.metadata().map_err(io)?.len();
        let mut cursor = Cursor {
            path,
            reader: BufReader::with_capacity(1 << 16, file),
            at: 0,
            length,
        };
        cursor.begin()?;
        // A tensor takes at least 24 bytes of header, a pair of metadata 13.
        let tensors = cursor.count("tensors", 24)?;
        let pairs = cursor.count("metadata", 13)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..pairs {
            let key = cursor.text("a metadata key")?;
            let kind = cursor.u32()?;
            let value = cursor.value(&key, kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(cursor.fail(format!("the metadata \"{key}\" is there twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(GgufValue::Integer(n)) if (1..=1 << 20).contains(n) && n.count_ones() == 1 => {
                *n as u64
            }
            Some(other) => {
                return Err(cursor.fail(format!(
                    "\"general.alignment\" is {other:?}, not a power of two"
                )));
            }
        };
        let mut list = Vec::new();
        for _ in 0..tensors {
            list.push(cursor.tensor()?);
        }
        let data = cursor.at.next_multiple_of(alignment);
        for tensor in &mut list {
            // Offsets in a header may be wrong; the reader of the tensors checks the ends.
            tensor.start = tensor.start.saturating_add(data);
        }
        Ok(Self {
            path: path.to_path_buf(),
            metadata,
            tensors: list,
        })
    }

    /// A metadata text.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>, DataError> {
        self.typed(key, "a text", |value| match value {
            GgufValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A metadata truth value.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, DataError> {
        self.typed(key, "true or false", |value| match value {
            GgufValue::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A metadata number that counts something or is an id.
    ///
    /// # Errors
    /// If it is of another type, negative or above 2³².
    pub fn size(&self, key: &str) -> Result<Option<usize>, DataError> {
        self.typed(key, "a size", |value| match value {
            GgufValue::Integer(n) => u32::try_from(*n).ok().map(|n| n as usize),
            _ => None,
        })
    }

    /// A metadata number. 32-bit floats are read as the shortest decimal that they stand for, so
    /// that 1e-5 does not become 9.99999974e-6.
    ///
    /// # Errors
    /// If it is of another type or not finite.
    pub fn number(&self, key: &str) -> Result<Option<f64>, DataError> {
        let number = self.typed(key, "a number", |value| match value {
            GgufValue::F32(x) => x.to_string().parse().ok(),
            GgufValue::F64(x) => Some(*x),
            GgufValue::Integer(n) => Some(*n as f64),
            _ => None,
        })?;
        match number {
            Some(x) if !f64::is_finite(x) => {
                Err(self.error(format!("\"{key}\" is {x}, not a finite number")))
            }
            number => Ok(number),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, DataError> {
        self.typed(key, "a list of texts", |value| match value {
            GgufValue::Texts(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of floats.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, DataError> {
        self.typed(key, "a list of floats", |value| match value {
            GgufValue::Floats(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of integers.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, DataError> {
        self.typed(key, "a list of integers", |value| match value {
            GgufValue::Integers(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, DataError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(found) => Ok(Some(found)),
                None => Err(self.error(format!("the metadata \"{key}\" is not {kind}"))),
            },
        }
    }

    /// An error about this file.
    pub fn error(&self, reason: impl Into<String>) -> DataError {
        DataError::Gguf {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

/// Reads forward and never asks for more than the file still holds.
struct Cursor<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    at: u64,
    length: u64,
}

impl Cursor<'_> {
    /// Reads the magic and the version.
    fn begin(&mut self) -> Result<(), DataError> {
        let magic: [u8; 4] = self.array()?;
        if &magic != b"GGUF" {
            return Err(self.fail(match &magic {
                b"vers" => "this is a Git LFS pointer, not the weights; run `git lfs pull`".into(),
                _ => format!("not a GGUF file: it begins with {magic:?} instead of \"GGUF\""),
            }));
        }
        let version = self.u32()?;
        if version & 0xffff == 0 {
            return Err(self.fail("a big-endian GGUF file is not supported".into()));
        }
        if !(2..=3).contains(&version) {
            return Err(self.fail(format!(
                "GGUF version {version} is not supported, only 2 and 3; convert the model again"
            )));
        }
        Ok(())
    }

    fn fail(&self, reason: String) -> DataError {
        DataError::Gguf {
            path: self.path.to_path_buf(),
            reason,
        }
    }

    fn cut(&self, what: &str) -> DataError {
        self.fail(format!(
            "{what} reaches beyond the end of the file ({} bytes); it is truncated or damaged, download it again",
            self.length
        ))
    }

    fn left(&self) -> u64 {
        self.length.saturating_sub(self.at)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DataError> {
        if self.left() < N as u64 {
            return Err(self.cut("the header"));
        }
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DataError> {
        self.reader
            .read_exact(bytes)
            .map_err(|source| DataError::Io {
                path: self.path.to_path_buf(),
                source,
            })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, DataError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A number of things that take at least `each` bytes of the rest of the file.
    fn count(&mut self, what: &str, each: u64) -> Result<usize, DataError> {
        let n = u64::from_le_bytes(self.array()?);
        match n.checked_mul(each) {
            Some(bytes) if bytes <= self.left() => Ok(n as usize),
            _ => Err(self.cut(&format!("a list of {n} ({what})"))),
        }
    }

    fn text(&mut self, what: &str) -> Result<String, DataError> {
        let length = self.count(what, 1)?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.fail(format!("{what} is not UTF-8")))
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<GgufValue, DataError> {
        Ok(match kind {
            0 => GgufValue::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => GgufValue::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => GgufValue::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => GgufValue::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => GgufValue::Integer(self.u32()?.into()),
            5 => GgufValue::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => GgufValue::F32(f32::from_le_bytes(self.array()?)),
            7 => GgufValue::Bool(self.array::<1>()?[0] != 0),
            8 => GgufValue::Text(self.text(&format!("the metadata \"{key}\""))?),
            9 => self.list(key, depth)?,
            10 => GgufValue::Integer(u64::from_le_bytes(self.array()?).into()),
            11 => GgufValue::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => GgufValue::F64(f64::from_le_bytes(self.array()?)),
            other => {
                return Err(self.fail(format!(
                    "the metadata \"{key}\" is of the unknown type {other}"
                )));
            }
        })
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<GgufValue, DataError> {
        if depth == MAX_NESTING {
            return Err(self.fail(format!("the metadata \"{key}\" nests too deep")));
        }
        let kind = self.u32()?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10 | 11 | 12 => 8,
            _ => 12,
        };
        let what = format!("the metadata \"{key}\"");
        let n = self.count(&what, width)?;
        Ok(match kind {
            6 => {
                let mut list = Vec::with_capacity(n);
                for _ in 0..n {
                    list.push(f32::from_le_bytes(self.array()?));
                }
                GgufValue::Floats(list)
            }
            8 => {
                let mut list = Vec::new();
                for _ in 0..n {
                    list.push(self.text(&what)?);
                }
                GgufValue::Texts(list)
            }
            0..=5 | 7 | 10 | 11 => {
                let mut list = Vec::with_capacity(n);
                for _ in 0..n {
                    match self.value(key, kind, depth + 1)? {
                        GgufValue::Integer(i) => list.push(i64::try_from(i).map_err(|_| {
                            self.fail(format!("{what} holds {i}, which is above 2⁶³"))
                        })?),
                        GgufValue::Bool(flag) => list.push(flag.into()),
                        _ => unreachable!("these kinds are integers or truth values"),
                    }
                }
                GgufValue::Integers(list)
            }
            _ => {
                let mut list = Vec::new();
                for _ in 0..n {
                    list.push(self.value(key, kind, depth + 1)?);
                }
                GgufValue::Array(list)
            }
        })
    }

    fn tensor(&mut self) -> Result<GgufTensor, DataError> {
        let name = self.text("a tensor's name")?;
        let dims = self.u32()?;
        if dims > MAX_DIMS {
            return Err(self.fail(format!(
                "tensor \"{name}\" has {dims} dimensions; the file is damaged"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let side = u64::from_le_bytes(self.array()?);
            let side = usize::try_from(side)
                .map_err(|_| self.fail(format!("tensor \"{name}\" has a side of {side}")))?;
            shape.insert(0, side);
        }
        Ok(GgufTensor {
            name,
            shape,
            kind: self.u32()?,
            start: u64::from_le_bytes(self.array()?),
        })
    }
}
