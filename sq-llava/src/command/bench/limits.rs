//! What the machine can do: its arithmetic units, and reading.

use anyhow::Result;
use burn::tensor::{Distribution, Tensor, backend::Backend};
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

impl Bench {
    pub(super) fn measure_limits<B: Backend>(&self, device: &B::Device) -> Result<Limits> {
        match self.model.device.resolved() {
            DeviceChoice::Cpu => self.processor_limits::<B>(device),
            _ => self.device_limits::<B>(device),
        }
    }

    /// Seconds of a product of 2048³, and its GFLOP/s.
    fn large_product<B: Backend>(&self, device: &B::Device) -> Result<(f64, f64)> {
        let n = 2048;
        let draw = || Tensor::<B, 2>::random([n, n], Distribution::Default, device);
        let (a, b) = (draw(), draw());
        let seconds = self.time(|| finish(a.clone().matmul(b.clone()), device))?;
        Ok((seconds, 2.0 * (n as f64).powi(3) / 1e9 / seconds))
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
        let (seconds, gflop_per_s) = self.large_product::<B>(device)?;
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

    /// A large product and a large read.
    fn device_limits<B: Backend>(&self, device: &B::Device) -> Result<Limits> {
        let (seconds, gflop_per_s) = self.large_product::<B>(device)?;
        self.report(&Row {
            gflop_per_s: Some(gflop_per_s),
            ..Row::new("limit: f32 product 2048³".into(), seconds, 1.0, "/s")
        })?;
        let (bytes, seconds) = self.read_device::<B>(device)?;
        let gb_per_s = bytes as f64 / 1e9 / seconds;
        let name = format!("limit: read of {:.1} GB", bytes as f64 / 1e9);
        self.report(&Row {
            gb_per_s: Some(gb_per_s),
            ..Row::new(name, seconds, 1.0, "/s")
        })?;
        Ok(Limits {
            gflop_per_s,
            bf16_gflop_per_s: gflop_per_s,
            reads: vec![(bytes, gb_per_s)],
        })
    }

    /// Bytes of a matrix far larger than a device's caches, and the seconds in which it is read
    /// once.
    fn read_device<B: Backend>(&self, device: &B::Device) -> Result<(usize, f64)> {
        let (rows, columns) = (32_768, 4_096);
        let weight = Tensor::<B, 2>::random([rows, columns], Distribution::Default, device);
        let row = Tensor::<B, 2>::random([1, columns], Distribution::Default, device);
        let product = self.time(|| {
            let weight = weight.clone().transpose();
            finish(row.clone().matmul(weight), device)
        })?;
        let sum = self.time(|| finish(weight.clone().sum_dim(1), device))?;
        Ok((rows * columns * 4, product.min(sum)))
    }
}
