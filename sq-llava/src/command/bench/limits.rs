//! What the machine can do: products of large matrices, and reading.

use anyhow::Result;
use burn::tensor::{Distribution, Tensor, backend::Backend};

use super::{Bench, Row, finish};
use crate::device::DeviceChoice;

/// Speeds that no work exceeds.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub gflop_per_s: f64,
    pub gb_per_s: f64,
}

/// Bytes that the CPU reads: far more than any cache holds.
const READ: usize = 1 << 30;

impl Bench {
    pub(super) fn measure_limits<B: Backend>(&self, device: &B::Device) -> Result<Limits> {
        let n = 2048;
        let draw = || Tensor::<B, 2>::random([n, n], Distribution::Default, device);
        let (a, b) = (draw(), draw());
        let seconds = self.time(|| finish(a.clone().matmul(b.clone()), device))?;
        let gflop_per_s = 2.0 * (n as f64).powi(3) / 1e9 / seconds;
        self.report(&Row {
            gflop_per_s: Some(gflop_per_s),
            ..Row::new(format!("limit: f32 product {n}³"), seconds, 1.0, "/s")
        })?;
        let (bytes, seconds) = match self.model.device.resolved() {
            DeviceChoice::Cpu => (READ, self.read_memory()?),
            _ => self.read_device::<B>(device)?,
        };
        let gb_per_s = bytes as f64 / 1e9 / seconds;
        let name = format!("limit: read of {:.1} GB", bytes as f64 / 1e9);
        self.report(&Row {
            gb_per_s: Some(gb_per_s),
            ..Row::new(name, seconds, 1.0, "/s")
        })?;
        Ok(Limits {
            gflop_per_s,
            gb_per_s,
        })
    }

    /// Seconds in which all threads together sum a gigabyte.
    fn read_memory(&self) -> Result<f64> {
        let words = vec![1u64; READ / size_of::<u64>()];
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        self.time(|| {
            let sum = std::thread::scope(|scope| {
                let parts: Vec<_> = words
                    .chunks(words.len().div_ceil(threads))
                    .map(|part| {
                        scope.spawn(|| part.iter().fold(0u64, |sum, &w| sum.wrapping_add(w)))
                    })
                    .collect();
                let sums = parts.into_iter().map(|part| part.join().unwrap_or(0));
                sums.fold(0, u64::wrapping_add)
            });
            anyhow::ensure!(sum == words.len() as u64, "a thread that reads has failed");
            Ok(())
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
