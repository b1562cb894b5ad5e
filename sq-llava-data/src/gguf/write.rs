//! Writing GGUF files, version 3.

use std::io::{self, BufWriter, IntoInnerError, Write};
use std::path::Path;

use crate::DataError;
use crate::atomic::AtomicFile;

/// Where tensors begin: multiples of this many bytes.
const ALIGNMENT: u64 = 32;

/// One metadata value by its type in the file, which llama.cpp looks at.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufField {
    /// An unsigned 32-bit integer.
    U32(u32),
    /// A 32-bit float.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Signed 32-bit integers.
    I32s(Vec<i32>),
    /// 32-bit floats.
    F32s(Vec<f32>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
}

impl From<&str> for GgufField {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufOutput {
    /// Name in the file.
    pub name: String,
    /// Row-major shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Number of the element type (`ggml_type`).
    pub kind: u32,
    /// Bytes of its values.
    pub bytes: u64,
}

/// Writes a file that has no name yet; committing it gives it `path`. `values` returns the bytes
/// of the tensor with an index, whose turn comes in the order of `tensors`.
///
/// # Errors
/// If the file cannot be written, or those of `values`.
///
/// # Panics
/// If `values` returns another number of bytes than the tensor's.
pub fn write_gguf<E: From<DataError>>(
    path: &Path,
    fields: &[(String, GgufField)],
    tensors: &[GgufOutput],
    mut values: impl FnMut(usize) -> Result<Vec<u8>, E>,
) -> Result<AtomicFile, E> {
    let failed = |source: io::Error| DataError::Io {
        path: path.to_path_buf(),
        source,
    };
    let file = AtomicFile::create(path).map_err(failed)?;
    let mut out = BufWriter::new(file);
    let header = header(fields, tensors);
    out.write_all(&header).map_err(failed)?;
    pad(&mut out, header.len() as u64).map_err(failed)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let bytes = values(index)?;
        assert_eq!(bytes.len() as u64, tensor.bytes, "{}", tensor.name);
        out.write_all(&bytes).map_err(failed)?;
        pad(&mut out, tensor.bytes).map_err(failed)?;
    }
    let file = out.into_inner().map_err(IntoInnerError::into_error);
    Ok(file.map_err(failed)?)
}

/// Zeros up to the next tensor.
fn pad(out: &mut impl Write, length: u64) -> io::Result<()> {
    let zeros = length.next_multiple_of(ALIGNMENT) - length;
    out.write_all(&[0; ALIGNMENT as usize][..zeros as usize])
}

fn header(fields: &[(String, GgufField)], tensors: &[GgufOutput]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((fields.len() as u64).to_le_bytes());
    for (key, field) in fields {
        text(&mut out, key);
        value(&mut out, field);
    }
    let mut start = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &side in tensor.shape.iter().rev() {
            out.extend((side as u64).to_le_bytes());
        }
        out.extend(tensor.kind.to_le_bytes());
        out.extend(u64::to_le_bytes(start));
        start += tensor.bytes.next_multiple_of(ALIGNMENT);
    }
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The number of the type, and the value.
fn value(out: &mut Vec<u8>, field: &GgufField) {
    let mut number = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match field {
        GgufField::U32(n) => number(4, &n.to_le_bytes()),
        GgufField::F32(x) => number(6, &x.to_le_bytes()),
        GgufField::Bool(flag) => number(7, &[u8::from(*flag)]),
        GgufField::Text(string) => {
            number(8, &[]);
            text(out, string);
        }
        GgufField::I32s(list) => array(out, 5, list, |out, n| out.extend(n.to_le_bytes())),
        GgufField::F32s(list) => array(out, 6, list, |out, x| out.extend(x.to_le_bytes())),
        GgufField::Bools(list) => array(out, 7, list, |out, &flag| out.push(u8::from(flag))),
        GgufField::Texts(list) => array(out, 8, list, |out, string| text(out, string)),
    }
}

fn array<T>(out: &mut Vec<u8>, kind: u32, list: &[T], one: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((list.len() as u64).to_le_bytes());
    for element in list {
        one(out, element);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufHeader, GgufValue};

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let fields = [
            ("n", GgufField::U32(7), GgufValue::Integer(7)),
            ("x", GgufField::F32(0.5), GgufValue::F32(0.5)),
            ("flag", GgufField::Bool(true), GgufValue::Bool(true)),
            ("name", "é".into(), GgufValue::Text("é".into())),
            (
                "ids",
                GgufField::I32s(vec![-1, 2]),
                GgufValue::Integers(vec![-1, 2]),
            ),
            (
                "scores",
                GgufField::F32s(vec![1.5]),
                GgufValue::Floats(vec![1.5]),
            ),
            (
                "flags",
                GgufField::Bools(vec![true, false]),
                GgufValue::Integers(vec![1, 0]),
            ),
            (
                "words",
                GgufField::Texts(vec!["a".into(), String::new()]),
                GgufValue::Texts(vec!["a".into(), String::new()]),
            ),
        ];
        let written: Vec<_> = fields
            .iter()
            .map(|(key, field, _)| ((*key).to_owned(), field.clone()))
            .collect();
        let tensor = |name: &str, shape: &[usize], bytes| GgufOutput {
            name: name.into(),
            shape: shape.into(),
            kind: 0,
            bytes,
        };
        let tensors = [tensor("a", &[3], 12), tensor("b", &[2, 3], 24)];
        let values = [vec![1; 12], vec![2; 24]];
        let file = write_gguf::<DataError>(&path, &written, &tensors, |i| Ok(values[i].clone()));
        assert!(!path.exists());
        file.unwrap().commit().unwrap();
        let header = GgufHeader::open(&path).unwrap();
        for (key, _, read) in &fields {
            assert_eq!(&header.metadata[*key], read, "{key}");
        }
        let bytes = std::fs::read(&path).unwrap();
        for (tensor, (listed, values)) in tensors.iter().zip(header.tensors.iter().zip(&values)) {
            assert_eq!((&listed.name, &listed.shape), (&tensor.name, &tensor.shape));
            let start = listed.start as usize;
            assert_eq!(start % 32, 0);
            assert_eq!(&bytes[start..start + values.len()], values);
        }
    }
}
