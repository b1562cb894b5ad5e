//! Parquet files with pictures inside, as Hugging Face data sets have them.
//!
//! A row becomes the JSON object that the same sample would be in LLaVA's file, from the columns
//! that are named alone; the bytes of its pictures are read when they are asked for. What was
//! decoded last is kept, so that reading on is not decoding again.

mod cache;
mod chunks;
mod row;
mod schema;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::Type;

use super::columns::Columns;
use crate::DataError;
use crate::blob::Blob;
use crate::foreign::guarded;
pub(super) use cache::Cache;
use cache::{Cursor, Rows};
use chunks::Chunks;
use schema::PictureColumn;

/// Rows that a file may say it has.
const MOST_ROWS: u64 = 1 << 32;

/// An open file.
pub(super) struct ParquetShard {
    blob: Blob,
    reader: SerializedFileReader<Chunks>,
    /// First row of each row group, and the number of rows.
    starts: Vec<usize>,
    /// What is read of a row without the bytes of pictures.
    text: Type,
    pictures: Option<PictureColumn>,
    cache: Arc<Cache>,
    /// Among the files of the cache.
    number: usize,
}

impl std::fmt::Debug for ParquetShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetShard")
            .field("blob", &self.blob)
            .field("starts", &self.starts)
            .finish_non_exhaustive()
    }
}

impl ParquetShard {
    /// Reads the file's footer.
    ///
    /// # Errors
    /// If it is no Parquet file, is cut short, or lacks the columns.
    pub fn open(
        path: &Path,
        columns: &Columns,
        cache: &Arc<Cache>,
        number: usize,
    ) -> Result<Self, DataError> {
        let blob = Blob::open(path)?;
        let fault = |reason: String| DataError::Shard {
            path: path.to_path_buf(),
            place: "its footer".into(),
            reason,
            damaged: true,
        };
        let open = || SerializedFileReader::new(Chunks(blob.clone()));
        let reader = guarded(open)
            .and_then(|reader| reader.map_err(|e| e.to_string()))
            .map_err(|reason| fault(format!("{reason}; if it was copied, copy it again")))?;
        let mut starts = vec![0];
        let mut rows = 0u64;
        for group in reader.metadata().row_groups() {
            rows = rows.saturating_add(u64::try_from(group.num_rows()).unwrap_or(u64::MAX));
            if rows > MOST_ROWS {
                return Err(fault("it says that it has more rows than can be".into()));
            }
            starts.push(rows as usize);
        }
        let found = guarded(|| schema::read(reader.metadata(), columns));
        let (text, pictures) =
            found
                .and_then(|found| found)
                .map_err(|reason| DataError::Shard {
                    path: path.to_path_buf(),
                    place: "its columns".into(),
                    reason,
                    damaged: false,
                })?;
        Ok(Self {
            blob,
            reader,
            starts,
            text,
            pictures,
            cache: cache.clone(),
            number,
        })
    }

    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    /// The row group of a row, and the row's place in it.
    fn find(&self, row: usize) -> (usize, usize) {
        let group = self.starts.partition_point(|&start| start <= row) - 1;
        (group, row - self.starts[group])
    }

    /// A row as a JSON object.
    pub fn object(&self, row: usize) -> Result<Vec<u8>, String> {
        let (group, place) = self.find(row);
        let key = (self.number, group);
        let rows = match self.cache.rows(key) {
            Some(rows) => rows,
            None => {
                let rows = Arc::new(self.rows(group));
                self.cache.keep_rows(key, &rows);
                rows
            }
        };
        rows.get(place)
            .map(<[u8]>::to_vec)
            .map_err(|reason| format!("row group {group}: {reason}"))
    }

    /// The rows of a group, as far as they can be read.
    fn rows(&self, group: usize) -> Rows {
        let mut rows = Rows::default();
        let read = guarded(|| -> Result<(), String> {
            let group = self.reader.get_row_group(group).map_err(text_of)?;
            let first = group.get_row_iter(Some(self.text.clone()));
            for row in first.map_err(text_of)? {
                rows.push(&row::object(
                    &row.map_err(text_of)?,
                    self.pictures.as_ref(),
                )?);
            }
            Ok(())
        });
        if let Err(reason) = read.and_then(|read| read) {
            rows.fail(reason);
        }
        rows
    }

    /// Calls pictures without a path by the file, their row and their place.
    pub fn name_pictures(file: &str, row_number: usize, names: &mut [String]) {
        for (place, name) in names.iter_mut().enumerate() {
            if name == row::UNNAMED {
                *name = format!("{file}#{row_number}.{place}");
            }
        }
    }

    /// The bytes of the picture at a place in a row; `None` where it has a path alone.
    pub fn picture(&self, row: usize, place: usize) -> Result<Option<Bytes>, String> {
        let column = self.pictures.as_ref();
        let Some((column, leaf)) = column.and_then(|c| c.bytes.map(|leaf| (c, leaf))) else {
            return Ok(None);
        };
        let (group, within) = self.find(row);
        let key = (self.number, group);
        let read = || -> Result<Option<Bytes>, String> {
            let mut cursor = match self.cache.cursor(key, within) {
                Some(cursor) => cursor,
                None => self.cursor(key, leaf)?,
            };
            let found = cursor.read(within, place, column)?;
            self.cache.keep_cursor(cursor);
            Ok(found)
        };
        guarded(read)
            .and_then(|found| found)
            .map_err(|reason| format!("column {}: {reason}", column.name))
    }

    /// A reader at the beginning of a row group.
    fn cursor(&self, key: (usize, usize), leaf: usize) -> Result<Cursor, String> {
        let group = self.reader.get_row_group(key.1).map_err(text_of)?;
        match group.get_column_reader(leaf).map_err(text_of)? {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(Cursor::new(key, reader)),
            _ => Err("its pictures are no bytes".into()),
        }
    }

    /// Calls `sink` with every byte that is not a picture's: the footer and the other columns.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn for_each_text(&self, sink: &mut dyn FnMut(&[u8])) -> std::io::Result<u64> {
        const FOOTER_END: u64 = 8;
        let len = self.blob.len();
        let mut put = |offset: u64, mut bytes: u64| -> std::io::Result<()> {
            let mut at = offset;
            while bytes > 0 {
                let part = bytes.min(1 << 20);
                sink(&self.blob.read_at(at, part as usize)?);
                (at, bytes) = (at + part, bytes - part);
            }
            Ok(())
        };
        let end = self
            .blob
            .read_at(len.saturating_sub(FOOTER_END), FOOTER_END.min(len) as usize)?;
        let footer = end.get(..4).and_then(|bytes| bytes.try_into().ok());
        let footer = u64::from(footer.map_or(0, u32::from_le_bytes)) + FOOTER_END;
        put(len.saturating_sub(footer), footer.min(len))?;
        let leaf = self.pictures.as_ref().and_then(|column| column.bytes);
        for group in self.reader.metadata().row_groups() {
            for (index, column) in group.columns().iter().enumerate() {
                let (offset, bytes) = column.byte_range();
                if Some(index) != leaf && offset.saturating_add(bytes) <= len {
                    put(offset, bytes)?;
                }
            }
        }
        Ok(len)
    }
}

/// A reader of pictures' bytes.
type PictureReader = ColumnReaderImpl<ByteArrayType>;

fn text_of(error: parquet::errors::ParquetError) -> String {
    error.to_string()
}
