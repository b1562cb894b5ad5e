//! What was decoded last of a set of Parquet files, shared by all threads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::data_type::ByteArray;

use super::schema::PictureColumn;
use super::{PictureReader, text_of};

/// Memory for the text of row groups.
const TEXT_BYTES: usize = 256 << 20;

/// Readers that stand in the middle of a row group, each with a page of pictures.
const CURSORS: usize = 16;

/// Number of a file, and of a row group in it.
type Key = (usize, usize);

/// Row groups that were read last.
#[derive(Default)]
pub(in crate::source) struct Cache {
    rows: Mutex<VecDeque<(Key, Arc<Rows>)>>,
    cursors: Mutex<VecDeque<Cursor>>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache")
    }
}

impl Cache {
    pub fn rows(&self, key: Key) -> Option<Arc<Rows>> {
        // Another thread's panic leaves at worst one entry too few.
        let mut kept = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| *known == key)?;
        let found = kept.remove(at)?;
        kept.push_back(found.clone());
        Some(found.1)
    }

    /// Keeps the rows; those that were not asked for the longest go, if they are too many.
    pub fn keep_rows(&self, key: Key, rows: &Arc<Rows>) {
        let mut kept = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| *known != key);
        kept.push_back((key, rows.clone()));
        let mut bytes: usize = kept.iter().map(|(_, rows)| rows.bytes()).sum();
        while bytes > TEXT_BYTES && kept.len() > 1 {
            let gone = kept.pop_front();
            bytes -= gone.map_or(0, |(_, rows)| rows.bytes());
        }
    }

    /// Takes the reader that has the shortest way to a row.
    pub fn cursor(&self, key: Key, row: usize) -> Option<Cursor> {
        let mut kept = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.iter().enumerate();
        let before = before.filter(|(_, cursor)| cursor.key == key && cursor.reaches(row));
        let (at, _) = before.max_by_key(|(_, cursor)| cursor.next)?;
        kept.remove(at)
    }

    pub fn keep_cursor(&self, cursor: Cursor) {
        let mut kept = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(cursor);
        if kept.len() > CURSORS {
            kept.pop_front();
        }
    }
}

/// The rows of a group as JSON objects.
#[derive(Default)]
pub(in crate::source) struct Rows {
    text: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    /// Why there are no more.
    failure: Option<String>,
}

impl Rows {
    pub fn push(&mut self, object: &[u8]) {
        self.text.extend_from_slice(object);
        self.ends.push(self.text.len());
    }

    pub fn fail(&mut self, reason: String) {
        self.failure = Some(reason);
    }

    pub fn get(&self, row: usize) -> Result<&[u8], String> {
        let start = match row.checked_sub(1) {
            None => Some(&0),
            Some(before) => self.ends.get(before),
        };
        match (start, self.ends.get(row)) {
            (Some(&start), Some(&end)) => Ok(&self.text[start..end]),
            _ => Err(match &self.failure {
                Some(reason) => format!("from its row {} on: {reason}", self.ends.len()),
                None => format!("it has only {} rows", self.ends.len()),
            }),
        }
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.ends.len() * size_of::<usize>()
    }
}

/// A reader of the pictures of a row group, somewhere in it.
pub(in crate::source) struct Cursor {
    key: Key,
    /// The row that it reads next.
    next: usize,
    /// The pictures of the row before, which may have several.
    last: Vec<Option<Bytes>>,
    reader: PictureReader,
}

impl Cursor {
    pub fn new(key: Key, reader: PictureReader) -> Self {
        Self {
            key,
            next: 0,
            last: Vec::new(),
            reader,
        }
    }

    fn reaches(&self, row: usize) -> bool {
        self.next <= row || (self.next == row + 1 && !self.last.is_empty())
    }

    /// The picture at a place of a row that is not behind.
    pub fn read(
        &mut self,
        row: usize,
        place: usize,
        column: &PictureColumn,
    ) -> Result<Option<Bytes>, String> {
        if self.next <= row {
            let skipped = self.reader.skip_records(row - self.next).map_err(text_of)?;
            self.next += skipped;
            if self.next != row {
                return Err(format!("it ends after {} rows", self.next));
            }
            self.last = self.record(column)?;
            self.next += 1;
        }
        match self.last.get(place) {
            Some(bytes) => Ok(bytes.clone()),
            None => Err(format!("it has only {} pictures there", self.last.len())),
        }
    }

    /// The pictures of the next row: bytes, or none where a picture has a path alone.
    fn record(&mut self, column: &PictureColumn) -> Result<Vec<Option<Bytes>>, String> {
        let (mut definitions, mut repetitions) = (Vec::new(), Vec::new());
        let mut values: Vec<ByteArray> = Vec::new();
        let levels = (Some(&mut definitions), Some(&mut repetitions));
        let read = self
            .reader
            .read_records(1, levels.0, levels.1, &mut values)
            .map_err(text_of)?;
        if read.0 != 1 {
            return Err(format!("it ends after {} rows", self.next));
        }
        // A column of which nothing may be missing has no levels.
        if column.levels.bytes == 0 {
            definitions = vec![0; values.len()];
        }
        let mut values = values.into_iter();
        let pictures = definitions
            .into_iter()
            .filter(|&level| level >= column.levels.picture);
        Ok(pictures
            .map(|level| match level == column.levels.bytes {
                true => values
                    .next()
                    .map(|value| Bytes::copy_from_slice(value.data())),
                false => None,
            })
            .collect())
    }
}
