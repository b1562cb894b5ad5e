//! What the machine can do: its arithmetic units, and reading.

use std::ops::RangeInclusive;

use anyhow::Result;
use burn::tensor::{DType, Distribution, Tensor, backend::Backend};
use sq_llava_model::ops::linear::product;
use sq_llava_model::peak::{Unit, read_bytes_per_s};
use sq_llava_model::processor::{KernelPath, VARIABLE, processor_name};

use super::{Bench, Row, finish};
use crate::device::DeviceChoice;

/// Speeds that no work exceeds.
#[derive(Clone)]
pub(super) struct Limits {
    /// Of f32 products.
    pub gflop_per_s: f64,
    /// Of products with weights in bf16.
    pub bf16_gflop_per_s: f64,
    /// Bytes that were read, and GB/s.
    reads: Vec<(usize, f64)>,
}

impl Limits {
    /// GB/s at which this many bytes are read at most: those of the largest measured size that is
    /// not larger.
    pub(super) fn read(&self, bytes: f64) -> f64 {
        let smaller = self.reads.iter().filter(|(size, _)| *size as f64 <= bytes);
        let found = smaller.max_by_key(|(size, _)| *size);
        found
            .or(self.reads.first())
            .map_or(f64::NAN, |(_, speed)| *speed)
    }
}

/// Megabytes that the CPU reads: from what a cache may hold to far more.
const READS: [usize; 3] = [32, 128, 512];
/// Runs of which the fastest counts.
const RUNS: usize = 7;
/// Sides of the matrices that a device multiplies, from its slowest kind to its fastest.
const SIDES: RangeInclusive<usize> = 256..=8192;
/// Rows of the matrix that a device reads, and their length.
const ROWS: RangeInclusive<usize> = 1024..=32_768;
const COLUMNS: usize = 4096;
/// Seconds beside which those of a launch do not count.
const ENOUGH: f64 = 0.005;

impl Bench {
    pub(super) fn measure_limits<B: Backend>(&self, device: &B::Device) -> Result<Limits> {
        match self.model.device.resolved() {
            DeviceChoice::Cpu => self.processor_limits::<B>(device),
            _ => self.device_limits::<B>(device),
        }
    }

    /// Seconds of a product of two matrices of so many rows and columns.
    fn square_product<B: Backend>(
        &self,
        n: usize,
        dtype: DType,
        multiply: fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
        device: &B::Device,
    ) -> Result<f64> {
        let draw = || Tensor::<B, 2>::random([n, n], Distribution::Default, device).cast(dtype);
        let (a, b) = (draw(), draw());
        self.time(|| finish(multiply(a.clone(), b.clone()), device))
    }

    /// The processor's units, each in registers alone, and memory read by all cores.
    fn processor_limits<B: Backend>(&self, device: &B::Device) -> Result<Limits> {
        let path = KernelPath::chosen()?;
        let (mut f32s, mut bf16s) = (0.0f64, 0.0f64);
        self.say(&format!(
            "processor: {}, {} threads; kernels: {path} (of {}; {VARIABLE} chooses)",
            processor_name(),
            sq_llava_data::machine_threads(),
            KernelPath::available()
                .iter()
                .map(|p| p.name())
                .collect::<Vec<_>>()
                .join(", "),
        ));
        for unit in Unit::ALL {
            let Some(speed) = unit.operations_per_s(RUNS) else {
                self.say(&format!("limit: {unit}: this processor has none"));
                continue;
            };
            let gflop_per_s = speed / 1e9;
            if unit.is_f32() {
                f32s = f32s.max(gflop_per_s);
            }
            if unit.is_bf16() {
                bf16s = bf16s.max(gflop_per_s);
            }
            self.report(&Row {
                gflop_per_s: Some(gflop_per_s),
                ..Row::new(
                    format!("limit: {unit}, 10¹² operations"),
                    1e12 / speed,
                    1.0,
                    "/s",
                )
            })?;
        }
        let mut reads = vec![];
        for size in READS {
            let bytes = size << 20;
            let gb_per_s = read_bytes_per_s(bytes, RUNS) / 1e9;
            let seconds = bytes as f64 / 1e9 / gb_per_s;
            self.report(&Row {
                gb_per_s: Some(gb_per_s),
                ..Row::new(format!("limit: read of {size} MiB"), seconds, 1.0, "/s")
            })?;
            reads.push((bytes, gb_per_s));
        }
        let seconds = self.square_product::<B>(2048, DType::F32, Tensor::matmul, device)?;
        let gflop_per_s = gflop(2048) / seconds;
        self.report(&Row {
            gflop_per_s: Some(gflop_per_s),
            share_of_limit: Some(gflop_per_s / f32s),
            ..Row::new("f32 product 2048³".into(), seconds, 1.0, "/s")
        })?;
        Ok(Limits {
            gflop_per_s: f32s,
            // Elsewhere such weights are multiplied in f32.
            bf16_gflop_per_s: if path.multiplies_bf16() { bf16s } else { f32s },
            reads,
        })
    }

    /// A large product in each dtype that is computed in, and a large read.
    fn device_limits<B: Backend>(&self, device: &B::Device) -> Result<Limits> {
        let gflop_per_s = self.device_product::<B>(DType::F32, device)?;
        let bf16_gflop_per_s = match B::supports_dtype(device, DType::BF16) {
            true => self.device_product::<B>(DType::BF16, device)?,
            false => gflop_per_s,
        };
        let (bytes, seconds) = self.read_device::<B>(device)?;
        let gb_per_s = bytes as f64 / 1e9 / seconds;
        self.report(&Row {
            gb_per_s: Some(gb_per_s),
            ..Row::new(
                format!("limit: read of {} MiB", bytes >> 20),
                seconds,
                1.0,
                "/s",
            )
        })?;
        Ok(Limits {
            gflop_per_s,
            bf16_gflop_per_s,
            reads: vec![(bytes, gb_per_s)],
        })
    }

    /// GFLOP/s of a product that is large for the device.
    fn device_product<B: Backend>(&self, dtype: DType, device: &B::Device) -> Result<f64> {
        let seconds = |n| self.square_product::<B>(n, dtype, product, device);
        let (n, seconds) = self.grown(SIDES, seconds)?;
        let gflop_per_s = gflop(n) / seconds;
        let name = format!("limit: {} product {n}³", dtype.name());
        self.report(&Row {
            gflop_per_s: Some(gflop_per_s),
            ..Row::new(name, seconds, 1.0, "/s")
        })?;
        Ok(gflop_per_s)
    }

    /// Bytes of a matrix that is large for the device, far larger than its caches where it is fast,
    /// and the seconds in which it is read once.
    fn read_device<B: Backend>(&self, device: &B::Device) -> Result<(usize, f64)> {
        let (rows, seconds) = self.grown(ROWS, |rows| {
            let draw =
                |rows| Tensor::<B, 2>::random([rows, COLUMNS], Distribution::Default, device);
            let (weight, row) = (draw(rows), draw(1));
            let read = self.time(|| finish(product(row.clone(), weight.clone()), device))?;
            let sum = self.time(|| finish(weight.clone().sum_dim(1), device))?;
            Ok(read.min(sum))
        })?;
        Ok((rows * COLUMNS * 4, seconds))
    }

    /// The first of sizes, each twice the one before, that takes long enough to be measured, or the
    /// last, and its seconds.
    fn grown(
        &self,
        sizes: RangeInclusive<usize>,
        seconds: impl Fn(usize) -> Result<f64>,
    ) -> Result<(usize, f64)> {
        let mut size = *sizes.start();
        loop {
            let taken = seconds(size)?;
            if taken >= ENOUGH || size >= *sizes.end() {
                return Ok((size, taken));
            }
            size *= 2;
        }
    }
}

/// Billions of operations of a product of `n³`.
fn gflop(n: usize) -> f64 {
    2.0 * (n as f64).powi(3) / 1e9
}
