//! Random draws of a training step, as pure functions of where they are used: masks of the
//! adapters' dropout, and new initial centres.
//!
//! A mask depends on the key of its sample (which [`key`] makes of seed, step and name), the number
//! of the adapter, the token and the column, and on nothing else: no generator has a state. So a
//! block that is run twice drops the same elements, with or without a graph, and a step drops the
//! same elements however its samples are spread over batches, threads and devices, or packed into
//! rows.
//!
//! Keys belong to a scope of the calling thread ([`with_keys`]); outside of one nothing is drawn.

use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::{DType, ElementConversion, Int, Tensor, TensorData, backend::Backend};
use sq_llava_data::mix::splitmix64;

#[cfg(feature = "cpu")]
use crate::kernels::cpu;
use crate::kernels::dropout::{BITS, MIX, Mask, SHIFT};

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// What the draws of a thread depend on.
#[derive(Debug, Clone)]
struct Scope {
    keys: Arc<[u64]>,
    /// Lengths of the samples in each row, where rows are packed; else there is a row for each key.
    lengths: Arc<[Vec<usize>]>,
}

/// Key of a sample, a picture or something else with a name in one optimizer step.
pub fn key(seed: u64, step: usize, name: &str) -> u64 {
    name.bytes()
        .fold(splitmix64(splitmix64(seed) ^ step as u64), |state, byte| {
            splitmix64(state ^ u64::from(byte))
        })
}

/// Runs something with dropout on in the adapters that this thread comes through.
///
/// `keys` has one for each sample (LLM) or picture (vision tower) of the batch, in order, or one
/// for the step (projector). Without keys nothing is drawn, whatever scope stands around.
pub fn with_keys<R>(keys: &[u64], run: impl FnOnce() -> R) -> R {
    with_packed_keys(keys, &[], run)
}

/// As [`with_keys`], where samples of these lengths stand one behind the other in each row; there
/// are as many lengths as keys. Each sample's draws are those that it has in a row of its own.
pub fn with_packed_keys<R>(keys: &[u64], lengths: &[Vec<usize>], run: impl FnOnce() -> R) -> R {
    /// Puts the outer scope back, after a panic too.
    struct Restore(Option<Scope>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPE.set(self.0.take());
        }
    }
    let inner = (!keys.is_empty()).then(|| Scope {
        keys: keys.into(),
        lengths: lengths.into(),
    });
    let _restore = Restore(SCOPE.replace(inner));
    run()
}

impl Scope {
    /// Key and place in its sample of each of `rows · tokens` tokens.
    fn places(&self, tokens: usize) -> Vec<(u64, usize)> {
        if self.lengths.is_empty() {
            // Padding is at the right: a token has the same place however long the batch is.
            let each = tokens.div_ceil(self.keys.len());
            return (0..tokens)
                .map(|t| (self.keys[t / each], t % each))
                .collect();
        }
        let each = tokens / self.lengths.len();
        let mut keys = self.keys.iter().copied();
        let mut places = Vec::with_capacity(tokens);
        for row in &*self.lengths {
            let end = places.len() + each;
            for &length in row {
                let key = keys.next().unwrap_or_default();
                places.extend((0..length).map(|place| (key, place)));
            }
            // Padding, which nothing depends on.
            places.resize(end, (0, 0));
        }
        places
    }
}

/// An adapter's input as training sees it: an element is 0 where it is dropped, else multiplied with
/// `1 / (1 − dropout)`. `None` where nothing is dropped. `[rows, width]`
pub(crate) fn dropped<B: Backend>(
    input: &Tensor<B, 2>,
    adapter: u64,
    dropout: f64,
) -> Option<Tensor<B, 2>> {
    let mask = mask(input.dims(), adapter, dropout)?;
    #[cfg(feature = "cpu")]
    if let Ok(output) = cpu::run::<B, _, 1>(cpu::Dropout(mask.clone()), [cpu::float(input.clone())])
    {
        return Some(cpu::tensor(output));
    }
    Some(masked(input.clone(), &mask))
}

/// The operations that every backend has.
pub(crate) fn masked<B: Backend>(input: Tensor<B, 2>, mask: &Mask) -> Tensor<B, 2> {
    let device = input.device();
    let values = if in_host_memory::<B>(&device) {
        Tensor::from_data(TensorData::new(mask.values(), input.dims()), &device)
    } else {
        on_device(mask, &device)
    };
    // In bf16 the factor would be wrong by up to 0.2 %.
    let dtype = input.dtype();
    (input.cast(DType::F32) * values.cast(DType::F32)).cast(dtype)
}

/// The mask of an adapter's input; `None` where nothing is dropped.
pub(crate) fn mask([rows, width]: [usize; 2], adapter: u64, dropout: f64) -> Option<Mask> {
    if dropout <= 0.0 || rows == 0 {
        return None;
    }
    let scope = SCOPE.with_borrow(Clone::clone)?;
    Some(of_places(&scope.places(rows), width, adapter, dropout))
}

/// Key of the scope at hand for a draw that all samples share.
pub(crate) fn shared_key() -> Option<u64> {
    SCOPE.with_borrow(|scope| scope.as_ref()?.keys.first().copied())
}

/// Whether a backend computes where this code runs, so that a mask need not be sent anywhere.
fn in_host_memory<B: Backend>(device: &B::Device) -> bool {
    let name = B::name(device);
    ["flex", "ndarray"].iter().any(|host| name.contains(host))
}

/// The mask of tokens with these keys and places.
fn of_places(places: &[(u64, usize)], width: usize, adapter: u64, dropout: f64) -> Mask {
    let adapter = splitmix64(adapter);
    let row = |&(key, place): &(u64, usize)| {
        let sample = splitmix64(key ^ adapter);
        top_bits(splitmix64(sample ^ place as u64))
    };
    Mask {
        rows: places.iter().map(row).collect(),
        columns: (0..width as u64).map(|c| top_bits(splitmix64(c))).collect(),
        threshold: (dropout * f64::from(BITS)) as u32,
        scale: (1.0 / (1.0 - dropout)) as f32,
    }
}

/// The mask's values, made on the device: only the keys travel.
fn on_device<B: Backend>(mask: &Mask, device: &B::Device) -> Tensor<B, 2> {
    let keys = |keys: &[u32]| {
        let keys: Vec<i32> = keys.iter().map(|&key| key as i32).collect();
        Tensor::<B, 1, Int>::from_data(TensorData::from(&keys[..]), device)
    };
    let shift = |x: Tensor<B, 2, Int>, bits: u32| {
        let shifted = x.clone().bitwise_right_shift_scalar(bits.elem());
        x.bitwise_xor(shifted)
    };
    let shape = [mask.rows.len(), mask.columns.len()];
    let rows = keys(&mask.rows).unsqueeze_dim::<2>(1).expand(shape);
    let columns = keys(&mask.columns).unsqueeze_dim::<2>(0).expand(shape);
    let mut x = rows.bitwise_xor(columns); // [rows, width]
    for (multiplier, bits) in MIX.into_iter().zip(SHIFT) {
        x = shift(x, bits).mul_scalar(multiplier);
        x = x.bitwise_and_scalar(BITS.elem());
    }
    x = shift(x, SHIFT[2]);
    let kept = x.greater_equal_elem(mask.threshold as i32);
    kept.float().mul_scalar(mask.scale)
}

fn top_bits(key: u64) -> u32 {
    (key >> 33) as u32
}

/// Standard normal numbers that depend on the seed alone, not on the backend. `[rows, width]`
pub(crate) fn normal<B: Backend>(
    rows: usize,
    width: usize,
    seed: u64,
    device: &B::Device,
) -> Tensor<B, 2> {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    // Box–Muller, in pairs.
    let mut values = Vec::with_capacity(rows * width + 1);
    while values.len() < rows * width {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        let radius = (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
        values.push((radius * cos) as f32);
        values.push((radius * sin) as f32);
    }
    values.truncate(rows * width);
    Tensor::from_data(burn::tensor::TensorData::new(values, [rows, width]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    fn drawn(keys: &[u64], shape: [usize; 2], adapter: u64, dropout: f64) -> Option<Vec<f32>> {
        let mask = with_keys(keys, || mask(shape, adapter, dropout))?;
        Some(mask.values())
    }

    #[test]
    fn the_device_makes_the_mask_that_the_host_makes() {
        for dropout in [0.05, 0.2, 0.5] {
            let places: Vec<_> = (0..64)
                .map(|row| (3 + 6 * (row / 32), row as usize % 32))
                .collect();
            let mask = of_places(&places, 33, 7, dropout);
            let tensor = on_device::<Flex>(&mask, &Default::default());
            let device: Vec<f32> = tensor.into_data().to_vec().expect("f32 values");
            assert_eq!(mask.values(), device, "dropout {dropout}");
        }
        // Above the size from which threads share the work.
        let places: Vec<_> = (0..300).map(|row| (1, row)).collect();
        let large = of_places(&places, 500, 7, 0.2);
        let tensor = on_device::<Flex>(&large, &Default::default());
        let device: Vec<f32> = tensor.into_data().to_vec().expect("f32 values");
        assert_eq!(large.values(), device);
    }

    #[test]
    fn elements_are_dropped_as_often_as_asked_and_independently() {
        let (rows, width) = (512, 576);
        for dropout in [0.05, 0.2] {
            let values = drawn(&[key(0, 3, "a")], [rows, width], 5, dropout).expect("a mask");
            let dropped: Vec<bool> = values.iter().map(|&v| v == 0.0).collect();
            let share = |hits: usize, of: usize| hits as f64 / of as f64;
            let all = share(dropped.iter().filter(|&&d| d).count(), dropped.len());
            // Four deviations of a binomial.
            let noise = 4.0 * (dropout * (1.0 - dropout) / dropped.len() as f64).sqrt();
            assert!((all - dropout).abs() < noise, "{all} for {dropout}");
            // Neighbours in a row, in a column, and diagonally.
            for step in [1, width, width + 1, 2, 2 * width] {
                let both = dropped.windows(step + 1).filter(|w| w[0] && w[step]);
                let both = share(both.count(), dropped.len() - step);
                assert!(
                    (both - dropout * dropout).abs() < noise,
                    "{step}: {both} for {dropout}"
                );
            }
            let kept = values.iter().find(|&&v| v != 0.0).expect("something kept");
            assert!((f64::from(*kept) - 1.0 / (1.0 - dropout)).abs() < 1e-6);
        }
    }

    #[test]
    fn masks_depend_on_sample_step_adapter_and_place_alone() {
        let of = |keys: &[u64], rows, adapter| drawn(keys, [rows, 40], adapter, 0.5).expect("one");
        let (a, b) = (key(1, 0, "a"), key(1, 0, "b"));
        let whole = of(&[a, b], 20, 3);
        // Each sample alone, and with more padding at its right.
        assert_eq!(whole[..400], of(&[a], 10, 3));
        assert_eq!(whole[400..], of(&[b], 10, 3));
        assert_eq!(whole[..400], of(&[a, b], 26, 3)[..400]);
        for other in [key(1, 1, "a"), key(2, 0, "a"), key(1, 0, "c")] {
            assert_ne!(of(&[a], 10, 3), of(&[other], 10, 3));
        }
        assert_ne!(of(&[a], 10, 3), of(&[a], 10, 4));
    }

    #[test]
    fn a_packed_sample_draws_what_it_draws_alone() {
        let (a, b, c) = (key(1, 0, "a"), key(1, 0, "b"), key(1, 0, "c"));
        let alone = |key, tokens| drawn(&[key], [tokens, 40], 3, 0.5).expect("one");
        let draw = || mask([2 * 12, 40], 3, 0.5);
        // The second row ends in padding.
        let packed = with_packed_keys(&[a, b, c], &[vec![5, 7], vec![9]], draw);
        let packed: Vec<f32> = packed.expect("a mask").values();
        assert_eq!(packed[..200], alone(a, 5));
        assert_eq!(packed[200..480], alone(b, 7));
        assert_eq!(packed[480..840], alone(c, 9));
    }

    #[test]
    fn nothing_is_dropped_outside_of_a_scope() {
        assert!(mask([4, 4], 0, 0.5).is_none());
        assert!(drawn(&[1], [4, 4], 0, 0.0).is_none());
        with_keys(&[1], || {
            assert!(mask([4, 4], 0, 0.5).is_some());
            with_keys(&[], || {
                assert!(mask([4, 4], 0, 0.5).is_none());
            });
            assert!(mask([4, 4], 0, 0.5).is_some());
            // Another thread has scopes of its own.
            let other = std::thread::spawn(move || mask([4, 4], 0, 0.5));
            assert!(other.join().expect("no panic").is_none());
        });
        assert!(mask([4, 4], 0, 0.5).is_none());
    }
}
