//! Element types of the tensors that are written to GGUF files, and their bytes.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::ModelError;
use crate::kernels::blocks::{BlockMatrix, QuantFormat};
use crate::ops::finite::all_finite;

use super::q4_k::write_q4_k;

/// Type of the matrices in a written GGUF file. Vectors are kept in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits with the range of 32.
    Bf16,
    /// 8.5 bits: blocks of 32 in int8 with a scale.
    Q8_0,
    /// 4.5 bits: blocks of 32 in int4 with a scale.
    Q4_0,
    /// 5 bits: blocks of 32 in int4 with a scale and a minimum.
    Q4_1,
    /// 4.5 bits: blocks of 256 with eight scales and minima.
    Q4K,
}

const NAMES: [(&str, GgufType); 7] = [
    ("f32", GgufType::F32),
    ("f16", GgufType::F16),
    ("bf16", GgufType::Bf16),
    ("q8_0", GgufType::Q8_0),
    ("q4_0", GgufType::Q4_0),
    ("q4_1", GgufType::Q4_1),
    ("q4_k", GgufType::Q4K),
];

impl FromStr for GgufType {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = NAMES.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| kind).ok_or_else(|| {
            ModelError::Argument(format!(
                "unknown type of GGUF files \"{name}\"; known are {}",
                NAMES.map(|(name, _)| name).join(", ")
            ))
        })
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.into_iter().find(|(_, kind)| kind == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl GgufType {
    /// Number of the type (`ggml_type`).
    pub(super) fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Bf16 => 30,
        }
    }

    /// Number of a file whose matrices are mostly of the type (`llama_ftype`).
    pub(super) fn file_number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q4K => 14,
            Self::Bf16 => 32,
        }
    }

    /// Elements and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q4K => (256, 144),
        }
    }

    /// Whether numbers are kept in blocks.
    pub(super) fn is_quantized(self) -> bool {
        self.block().0 > 1
    }

    /// The type of a matrix whose rows are this long: blocks that do not fit give way to smaller
    /// ones, and those to f16. `table` is embedding or head, which suffer most from few bits.
    pub(super) fn of_rows(self, columns: usize, table: bool) -> Self {
        let wanted = match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K if table => Self::Q8_0,
            other => other,
        };
        let fits = |kind: Self| columns.is_multiple_of(kind.block().0);
        match wanted {
            fitting if fits(fitting) => fitting,
            Self::Q4K if fits(Self::Q8_0) => Self::Q8_0,
            _ => Self::F16,
        }
    }

    /// Bytes of a number of elements, of whole rows.
    pub(super) fn bytes(self, elements: usize) -> u64 {
        let (count, bytes) = self.block();
        (elements / count * bytes) as u64
    }

    /// The bytes of a tensor's values; rows are `columns` long.
    ///
    /// # Errors
    /// If a value is not finite in the type.
    pub(super) fn encode(
        self,
        name: &str,
        values: &[f32],
        columns: usize,
    ) -> Result<Vec<u8>, ModelError> {
        let shape = [values.len() / columns.max(1), columns];
        let row = |row: usize, out: &mut [f32]| {
            out.copy_from_slice(&values[row * columns..(row + 1) * columns]);
        };
        match self {
            Self::Q8_0 => {
                let matrix = BlockMatrix::quantize(name, QuantFormat::Q8, shape, row)?;
                return Ok(joined(&matrix));
            }
            Self::Q4_1 => {
                let matrix = BlockMatrix::quantize(name, QuantFormat::Q4, shape, row)?;
                return Ok(joined(&matrix));
            }
            _ => {}
        }
        let bytes: Vec<u8> = match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::Bf16 => values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            Self::F16 => {
                let most = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                if most > f32::from(f16::MAX) {
                    return Err(too_large(name, most));
                }
                values
                    .iter()
                    .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                    .collect()
            }
            _ => self.blocks(values),
        };
        match all_finite(values) {
            true => Ok(bytes),
            false => Err(ModelError::Argument(format!(
                "the weight \"{name}\" holds NaN or infinity; its file is damaged, or was trained to that"
            ))),
        }
    }

    /// Q4_0 and Q4_K.
    fn blocks(self, values: &[f32]) -> Vec<u8> {
        let (count, bytes) = self.block();
        let mut out = vec![0; values.len() / count * bytes];
        let blocks = out.par_chunks_exact_mut(bytes);
        blocks
            .zip(values.par_chunks_exact(count))
            .for_each(|(block, values)| match self {
                Self::Q4K => write_q4_k(values, block),
                _ => write_q4_0(values, block),
            });
        out
    }
}

fn too_large(name: &str, value: f32) -> ModelError {
    ModelError::Argument(format!(
        "the weight \"{name}\" holds {value}, beyond f16's numbers; write the file in bf16 or f32"
    ))
}

/// The arrays of a matrix as blocks: scale, minimum, numbers.
fn joined(matrix: &BlockMatrix) -> Vec<u8> {
    let (quants, scales, mins) = matrix.parts();
    let width = quants.len() / scales.len().max(1);
    let mut out = Vec::with_capacity(matrix.bytes());
    for (index, (scale, quants)) in scales.iter().zip(quants.chunks_exact(width)).enumerate() {
        out.extend(scale.to_le_bytes());
        if let Some(min) = mins.get(index) {
            out.extend(min.to_le_bytes());
        }
        out.extend(quants);
    }
    out
}

/// One block, as the `gguf` package has it: the largest number becomes −8.
fn write_q4_0(values: &[f32], block: &mut [u8]) {
    let mut largest = 0.0f32;
    for &value in values {
        if value.abs() > largest.abs() {
            largest = value;
        }
    }
    let d = largest / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (i, &value) in values.iter().enumerate() {
        let quant = ((value * inverse + 8.5) as u8).min(15);
        block[2 + i % 16] |= quant << (4 * (i / 16));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use golden::Tensors;

    use super::*;

    #[test]
    fn names_go_both_ways_and_rows_find_blocks_that_fit() {
        for (name, kind) in NAMES {
            assert_eq!(name.parse::<GgufType>().unwrap(), kind);
            assert_eq!(kind.to_string(), name);
        }
        assert!("q5_x".parse::<GgufType>().is_err());
        for (wanted, columns, table, kind) in [
            (GgufType::Q4K, 512, false, GgufType::Q4K),
            (GgufType::Q4K, 512, true, GgufType::Q8_0),
            (GgufType::Q4K, 96, false, GgufType::Q8_0),
            (GgufType::Q4_0, 96, false, GgufType::Q4_0),
            (GgufType::Q4_0, 48, false, GgufType::F16),
            (GgufType::Bf16, 48, true, GgufType::Bf16),
        ] {
            assert_eq!(wanted.of_rows(columns, table), kind, "{wanted} {columns}");
        }
    }

    #[test]
    fn what_a_type_cannot_hold_is_named() {
        for (kind, value) in [
            (GgufType::F16, 7e4),
            (GgufType::F32, f32::NAN),
            (GgufType::Q8_0, f32::INFINITY),
            (GgufType::Q4_0, f32::NAN),
            (GgufType::Q4K, f32::NEG_INFINITY),
        ] {
            let mut values = vec![0.5; 256];
            values[77] = value;
            let error = kind.encode("some.weight", &values, 256).unwrap_err();
            assert!(error.to_string().contains("some.weight"), "{kind}: {error}");
            assert!(kind.encode("some.weight", &[0.5; 256], 256).is_ok());
        }
    }

    /// The blocks of `gguf` and of llama.cpp, number for number.
    #[test]
    fn golden_blocks_are_written_as_the_reference_writes_them() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
        for (file, types) in [
            (
                "quantized",
                &[("Q8_0", GgufType::Q8_0), ("Q4_1", GgufType::Q4_1)][..],
            ),
            (
                "written",
                &[("Q4_0", GgufType::Q4_0), ("Q4_K", GgufType::Q4K)],
            ),
        ] {
            let golden = Tensors::read(&fixtures.join(format!("{file}.safetensors")));
            let [rows, columns]: [usize; 2] = golden.shape("weight").try_into().unwrap();
            for &(name, kind) in types {
                let expected = golden.u8(name);
                let found = kind.encode(name, &golden.f32("weight"), columns).unwrap();
                assert_eq!(found.len(), expected.len(), "{name}");
                let row = found.len() / rows;
                for (index, (found, expected)) in
                    found.chunks(row).zip(expected.chunks(row)).enumerate()
                {
                    assert!(found == expected, "{name}: row {index} differs");
                }
            }
        }
    }
}
