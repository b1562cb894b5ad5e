//! Finds where the samples of a file lie, in one pass and without parsing them.

use std::path::Path;

use crate::DataError;

/// A sample is text; one above this is a damaged file, not to be read into memory.
pub(crate) const MAX_SAMPLE_BYTES: u64 = 64 << 20;

/// Position of a sample in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    pub offset: u64,
    pub bytes: u64,
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
pub(super) struct Scanner {
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
pub(super) struct Fault {
    index: usize,
    offset: u64,
    reason: String,
}

impl Fault {
    pub(super) fn at(self, path: &Path) -> DataError {
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
    pub(super) fn skip<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mark = match self.layout {
            Layout::Array if self.in_string && !self.escaped => memchr::memchr2(b'"', b'\\', bytes),
            Layout::Lines if self.start.is_some() => memchr::memchr(b'\n', bytes),
            _ => Some(0),
        };
        let (passed, rest) = bytes.split_at(mark.unwrap_or(bytes.len()));
        self.position += passed.len() as u64;
        rest
    }

    pub(super) fn take(&mut self, byte: u8) -> Result<(), Fault> {
        match self.layout {
            Layout::Unknown => self.take_first(byte)?,
            Layout::Array => self.take_in_array(byte)?,
            Layout::Lines => self.take_in_lines(byte)?,
            Layout::Closed if byte.is_ascii_whitespace() => {}
            Layout::Closed => return self.fault("something follows the end of the array"),
        }
        self.position += 1;
        self.check_size(self.position)
    }

    fn check_size(&self, end: u64) -> Result<(), Fault> {
        match self.start {
            Some(start) if end - start > MAX_SAMPLE_BYTES => {
                self.fault("a sample above 64 MiB: is a bracket or a quote missing?")
            }
            _ => Ok(()),
        }
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
                        self.close(self.position + 1)?;
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
                    self.close(self.position)?;
                }
            }
            _ if self.start.is_some() || byte.is_ascii_whitespace() => {}
            b'{' => self.start = Some(self.position),
            _ => return self.fault("expected a sample (an object) on each line"),
        }
        Ok(())
    }

    fn close(&mut self, end: u64) -> Result<(), Fault> {
        self.check_size(end)?;
        if let Some(offset) = self.start.take() {
            self.elements.push(Element {
                offset,
                bytes: end - offset,
            });
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Vec<Element>, Fault> {
        match self.layout {
            Layout::Unknown => self.fault("the file is empty"),
            Layout::Array if self.start.is_some() => {
                self.fault("the file ends inside a sample: is it cut short?")
            }
            Layout::Array => self.fault("the array is not closed: is the file cut short?"),
            Layout::Lines => {
                self.close(self.position)?;
                Ok(self.elements)
            }
            Layout::Closed => Ok(self.elements),
        }
    }
}
