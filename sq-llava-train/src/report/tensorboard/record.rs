//! TensorBoard's event files: records of a length, its checksum, an event and its checksum.
//!
//! The messages are TensorBoard's own (`event.proto`, `summary.proto`, `tensor.proto`), without the
//! fields that are never written here.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use prost::Message;

/// Version that the first event of a file names.
pub(super) const FILE_VERSION: &str = "brain.Event:2";
/// Kind of a tensor whose elements are texts.
pub(super) const DT_STRING: i32 = 7;
/// Says of a session that it begins: what stood before at its step or later is void.
pub(super) const SESSION_START: i32 = 1;
/// Largest event that is read; a larger length is damage.
const MOST_BYTES: u64 = 1 << 28;

/// Something that happened at a step.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

/// What happened.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionLog {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

/// A value of one of the curves, texts or pictures.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Value {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(message, optional, tag = "9")]
    pub metadata: Option<Metadata>,
    #[prost(oneof = "Datum", tags = "2, 4, 8")]
    pub datum: Option<Datum>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Datum {
    #[prost(float, tag = "2")]
    Scalar(f32),
    #[prost(message, tag = "4")]
    Picture(Picture),
    #[prost(message, tag = "8")]
    Tensor(Tensor),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Picture {
    #[prost(int32, tag = "1")]
    pub height: i32,
    #[prost(int32, tag = "2")]
    pub width: i32,
    /// 3: RGB.
    #[prost(int32, tag = "3")]
    pub colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    pub encoded: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(message, optional, tag = "1")]
    pub plugin: Option<Plugin>,
}

/// Which part of TensorBoard shows a value.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Plugin {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tensor {
    #[prost(int32, tag = "1")]
    pub dtype: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub strings: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Shape {
    #[prost(message, repeated, tag = "2")]
    pub dims: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Dim {
    #[prost(int64, tag = "1")]
    pub size: i64,
}

/// An event as it stands in a file.
pub(super) fn record(event: &Event) -> Vec<u8> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(&data);
    out.extend(masked(&data).to_le_bytes());
    out
}

/// CRC-32C, turned so that a checksum of checksums is one too.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xA282_EAD8)
}

/// Bytes at the beginning of a file that hold whole records of events up to a step.
pub(super) fn bytes_up_to(path: &Path, step: usize) -> std::io::Result<u64> {
    let mut file = BufReader::new(File::open(path)?);
    let mut kept = 0;
    while let Some((event, bytes)) = next(&mut file)? {
        if event.step > step as i64 {
            break;
        }
        kept += bytes;
    }
    Ok(kept)
}

/// The next event and the bytes of its record; `None` at the end, or where a kill or a full disk
/// left something else.
pub(super) fn next(file: &mut impl Read) -> std::io::Result<Option<(Event, u64)>> {
    let mut head = [0; 12];
    if !fill(file, &mut head)? {
        return Ok(None);
    }
    let (length, sum) = head.split_at(8);
    // Eight and four bytes were split off.
    let bytes = length.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
    if sum != masked(length).to_le_bytes() || bytes > MOST_BYTES {
        return Ok(None);
    }
    let mut data = vec![0; bytes as usize];
    let mut sum = [0; 4];
    if !fill(file, &mut data)? || !fill(file, &mut sum)? || sum != masked(&data).to_le_bytes() {
        return Ok(None);
    }
    Ok(Event::decode(&data[..])
        .ok()
        .map(|event| (event, bytes + 16)))
}

/// Fills a buffer; false if the file ends before.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}
