//! One stored tensor: a view into a memory-mapped file, converted when it is asked for.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, TensorData};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use sq_llava_data::files;

use super::gguf::BlockFormat;
use crate::error::ModelError;

/// Elements that are converted at a time; a multiple of every block's.
const CHUNK: usize = 4096;

/// A weight file in the address space; its pages belong to the file, not to the process.
#[derive(Debug)]
pub(super) struct MappedFile {
    pub path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<Arc<Self>, ModelError> {
        let file = files::open(path)?;
        let length = file.metadata().map_err(|e| ModelError::io(path, e))?.len();
        if length == 0 {
            return Err(ModelError::weights(
                path,
                "the file is empty; download it again",
            ));
        }
        // SAFETY: the mapping is only read. Another process that shrinks the file meanwhile would
        // fault, as with every reader that maps weights; ours writes to new names and renames.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, e))?;
        if map.starts_with(b"version https://git-lfs") {
            return Err(ModelError::weights(
                path,
                "this is a Git LFS pointer, not the weights; run `git lfs pull`",
            ));
        }
        Ok(Arc::new(Self {
            path: path.to_path_buf(),
            map,
        }))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Element type in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredType {
    F64,
    F32,
    F16,
    BF16,
    /// Quantised blocks along a row.
    Blocks(BlockFormat),
    /// Not a float, with its size in bytes: only known-ignorable tensors may be so.
    Other(usize),
}

impl StoredType {
    /// Bytes of a number of elements (of whole blocks); `None` on overflow.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        match self {
            Self::Blocks(format) => (elements / format.elements()).checked_mul(format.bytes()),
            other => elements.checked_mul(other.size()),
        }
    }

    /// Bytes of an element, or of a block.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Blocks(format) => format.bytes(),
            Self::Other(size) => size,
        }
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Blocks(format) => format.name(),
            Self::Other(_) => "not a float",
        }
    }
}

/// A named tensor in a file.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    pub file: Arc<MappedFile>,
    /// Key in the file.
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: StoredType,
    /// Byte offset of the first element.
    pub start: usize,
    /// Elements between neighbours along each dimension, where they are not row-major.
    pub strides: Option<Vec<usize>>,
    /// Number of heads whose rows alternate between the two halves of a head (`0, d/2, 1,
    /// d/2 + 1 …`), as llama.cpp keeps queries and keys; they are read in their plain order.
    pub interleaved_heads: Option<usize>,
    /// Whether the numbers are one more than the weight (norms of Gemma in GGUF files).
    pub one_more: bool,
}

impl StoredTensor {
    /// A tensor whose elements have been checked to lie inside the file.
    pub fn new(
        file: &Arc<MappedFile>,
        name: String,
        shape: Vec<usize>,
        dtype: StoredType,
        start: usize,
        end: usize,
        strides: Option<Vec<usize>>,
    ) -> Result<Self, ModelError> {
        // Along a side of one element nothing is stepped over.
        let strides = strides.filter(|s| {
            let steps = s.iter().zip(row_major(&shape)).zip(&shape);
            s.len() != shape.len() || steps.into_iter().any(|((a, b), &n)| n != 1 && *a != b)
        });
        let tensor = Self {
            file: file.clone(),
            name,
            shape,
            dtype,
            start,
            strides,
            interleaved_heads: None,
            one_more: false,
        };
        let fail = |what: &str| {
            let reason = format!("tensor \"{}\" {what}", tensor.name);
            Err(ModelError::weights(&file.path, reason))
        };
        match tensor.extent() {
            Some(last) if last <= end && end <= file.bytes().len() => {
                // Steps of 0, or that overlap, make a huge tensor of a few numbers.
                let bytes = tensor.dtype.bytes(tensor.elements());
                if bytes.is_none_or(|bytes| bytes > last - start) {
                    return fail(
                        "uses the same stored numbers many times (an expanded tensor); save it with .contiguous()",
                    );
                }
                Ok(tensor)
            }
            _ => fail("reaches beyond the stored data; the file is truncated or damaged"),
        }
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size in the file in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.byte_length() as u64
    }

    fn byte_length(&self) -> usize {
        // The extent was checked when the tensor was made.
        self.dtype.bytes(self.elements()).unwrap_or(0)
    }

    /// Byte offset behind the last element; `None` on overflow.
    fn extent(&self) -> Option<usize> {
        let count = self
            .shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let elements = match &self.strides {
            _ if count == 0 => 0,
            None => count,
            Some(strides) if strides.len() == self.shape.len() => {
                let last = self
                    .shape
                    .iter()
                    .zip(strides)
                    .try_fold(0usize, |sum, (&d, &s)| {
                        sum.checked_add((d - 1).checked_mul(s)?)
                    })?;
                last.checked_add(1)?
            }
            Some(_) => return None,
        };
        self.dtype.bytes(elements)?.checked_add(self.start)
    }

    /// The values in `dtype` (f32, f16 or bf16), in one allocation beside the mapped file.
    pub fn read(&self, dtype: DType) -> Result<TensorData, ModelError> {
        let bytes = &*self.row_major_bytes();
        let (shape, as_is) = (self.shape.clone(), !self.one_more);
        let data = match (self.dtype, dtype) {
            (StoredType::F32, DType::F32) if as_is => TensorData::new(copied::<f32>(bytes), shape),
            (StoredType::F16, DType::F16) if as_is => TensorData::new(copied::<f16>(bytes), shape),
            (StoredType::BF16, DType::BF16) if as_is => {
                TensorData::new(copied::<bf16>(bytes), shape)
            }
            (StoredType::Other(_), _) => {
                return Err(ModelError::weights(
                    &self.file.path,
                    format!(
                        "tensor \"{}\" does not hold f32, f16, bf16 or f64 numbers",
                        self.name
                    ),
                ));
            }
            (_, DType::F32) => TensorData::new(
                self.convert(bytes, 0.0f32, |wide, out| {
                    out.copy_from_slice(wide);
                }),
                shape,
            ),
            (_, DType::F16) => TensorData::new(
                self.convert(bytes, f16::ZERO, |wide, out| {
                    out.convert_from_f32_slice(wide);
                }),
                shape,
            ),
            (_, DType::BF16) => TensorData::new(
                self.convert(bytes, bf16::ZERO, |wide, out| {
                    out.convert_from_f32_slice(wide);
                }),
                shape,
            ),
            (_, other) => {
                return Err(ModelError::Argument(format!(
                    "weights cannot be loaded as {other:?}; choose f32, f16 or bf16"
                )));
            }
        };
        Ok(data)
    }

    /// Through f32, a chunk at a time.
    fn convert<T: Copy>(&self, bytes: &[u8], zero: T, narrow: impl Fn(&[f32], &mut [T])) -> Vec<T> {
        let mut out = vec![zero; self.elements()];
        let mut wide = vec![0.0f32; CHUNK];
        let size = self.dtype.bytes(CHUNK).unwrap_or(CHUNK);
        for (source, target) in bytes.chunks(size).zip(out.chunks_mut(CHUNK)) {
            let wide = &mut wide[..target.len()];
            self.widen(source, wide);
            if self.one_more {
                wide.iter_mut().for_each(|value| *value -= 1.0);
            }
            narrow(wide, target);
        }
        out
    }

    /// Stored elements (whole blocks of them) in f32.
    ///
    /// # Panics
    /// If the tensor does not hold floats.
    pub fn widen(&self, source: &[u8], wide: &mut [f32]) {
        match self.dtype {
            StoredType::F32 => {
                bytemuck::cast_slice_mut(wide).copy_from_slice(source);
            }
            StoredType::F16 => {
                let mut halves = [f16::ZERO; 256];
                for (source, wide) in source.chunks(512).zip(wide.chunks_mut(256)) {
                    let halves = &mut halves[..wide.len()];
                    bytemuck::cast_slice_mut(halves).copy_from_slice(source);
                    halves.convert_to_f32_slice(wide);
                }
            }
            StoredType::BF16 => {
                for (v, b) in wide.iter_mut().zip(source.chunks_exact(2)) {
                    *v = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            StoredType::F64 => {
                for (v, b) in wide.iter_mut().zip(source.chunks_exact(8)) {
                    let b = [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]];
                    *v = f64::from_le_bytes(b) as f32;
                }
            }
            StoredType::Blocks(format) => format.dequantize(source, wide),
            StoredType::Other(_) => unreachable!("refused by the callers"),
        }
    }

    /// Whether another tensor is stored with the same type, shape and bytes.
    pub fn same_values(&self, other: &Self) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && self.row_major_bytes() == other.row_major_bytes()
    }

    /// Refuses a second tensor for the same weight unless it is the same: which one is meant is
    /// anybody's guess.
    ///
    /// # Errors
    /// If they differ.
    pub fn must_equal(&self, first: &Self) -> Result<(), ModelError> {
        if self.same_values(first) {
            return Ok(());
        }
        Err(ModelError::weights(
            &self.file.path,
            format!(
                "tensor \"{}\" is the same weight as \"{}\" of {}, with other values; remove one of them",
                self.name,
                first.name,
                first.file.path.display()
            ),
        ))
    }

    /// The stored bytes (of whole blocks), rows in their plain order.
    pub fn row_major_bytes(&self) -> Cow<'_, [u8]> {
        if let Some(strides) = &self.strides {
            return Cow::Owned(self.gather(strides));
        }
        let bytes = &self.file.bytes()[self.start..self.start + self.byte_length()];
        match self.interleaved_heads {
            None => Cow::Borrowed(bytes),
            Some(heads) => Cow::Owned(halves_apart(bytes, self.shape[0], heads)),
        }
    }

    /// Elements of a strided view in row-major order.
    fn gather(&self, strides: &[usize]) -> Vec<u8> {
        let (size, bytes) = (self.dtype.size(), self.file.bytes());
        let mut out = Vec::with_capacity(self.elements() * size);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..self.elements() {
            let offset: usize = index.iter().zip(strides).map(|(i, s)| i * s).sum();
            let at = self.start + offset * size;
            out.extend_from_slice(&bytes[at..at + size]);
            for d in (0..index.len()).rev() {
                index[d] += 1;
                if index[d] < self.shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        out
    }
}

/// Rows `0, 2, 4 … 1, 3, 5 …` of each head.
fn halves_apart(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row, head) = (bytes.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(bytes.len());
    for first in (0..rows).step_by(head) {
        for half in 0..2 {
            for i in (half..head).step_by(2) {
                let at = (first + i) * row;
                out.extend_from_slice(&bytes[at..at + row]);
            }
        }
    }
    out
}

/// Little-endian bytes as numbers; the one copy that a load makes.
fn copied<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut out = bytemuck::allocation::zeroed_vec::<T>(bytes.len() / size_of::<T>());
    bytemuck::cast_slice_mut(&mut out).copy_from_slice(bytes);
    out
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d].saturating_mul(shape[d]);
    }
    strides
}
