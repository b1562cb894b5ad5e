//! Instruction sets, found at run time.

use burn::tensor::f16;

use super::math::{LANES, total};
#[cfg(target_arch = "x86_64")]
use super::processor::{KernelPath, path};

/// What the arithmetic of a compiled copy may use.
pub(super) trait Level {
    /// Whether a fused multiply-add is one instruction.
    const FMA: bool;

    /// `a · b + c`.
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        if Self::FMA {
            a.mul_add(b, c)
        } else {
            a * b + c
        }
    }

    /// Sums of the lanes of eight vectors, each as [`total`].
    #[inline(always)]
    fn totals(vectors: &[[f32; LANES]; 8]) -> [f32; 8] {
        let mut sums = [0.0; 8];
        for (sum, lanes) in sums.iter_mut().zip(vectors) {
            *sum = total(*lanes);
        }
        sums
    }

    /// f16 to f32, exactly.
    #[inline(always)]
    fn widen(from: &[f16; LANES]) -> [f32; LANES] {
        let mut to = [0.0; LANES];
        for (to, from) in to.iter_mut().zip(from) {
            let bits = u32::from(from.to_bits());
            // Exponent and fraction in their new places, the exponent's offset by a product: that
            // holds for subnormal numbers too.
            let scaled = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
            let special = bits & 0x7c00 == 0x7c00;
            let size = if special {
                f32::from_bits((bits & 0x7fff) << 13 | 0x7f80_0000)
            } else {
                scaled
            };
            *to = f32::from_bits(size.to_bits() | (bits & 0x8000) << 16);
        }
        to
    }
}

/// Whatever the target always has.
pub(super) struct Baseline;

impl Level for Baseline {
    const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
}

/// AVX2 or more, with fused multiply-add.
#[cfg(target_arch = "x86_64")]
pub(super) struct Fused;

#[cfg(target_arch = "x86_64")]
impl Level for Fused {
    const FMA: bool = true;

    #[inline(always)]
    fn totals(vectors: &[[f32; LANES]; 8]) -> [f32; 8] {
        use std::arch::x86_64::*;
        // SAFETY: this level stands for machines with AVX2; eight elements are read and written at
        // a time, inside arrays of sixteen and of eight.
        unsafe {
            // Lanes 8 apart, then 4, 2 and 1, as `total` adds them.
            let mut halves = [_mm256_setzero_ps(); 8];
            for (half, lanes) in halves.iter_mut().zip(vectors) {
                let low = _mm256_loadu_ps(lanes.as_ptr());
                *half = _mm256_add_ps(low, _mm256_loadu_ps(lanes.as_ptr().add(8)));
            }
            let mut fours = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let (a, b) = (halves[i], halves[i + 4]);
                let low = _mm256_permute2f128_ps::<0x20>(a, b);
                fours[i] = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b));
            }
            let mut twos = [_mm256_setzero_ps(); 2];
            for i in 0..2 {
                let (a, b) = (fours[2 * i], fours[2 * i + 1]);
                let low = _mm256_shuffle_ps::<0x44>(a, b);
                twos[i] = _mm256_add_ps(low, _mm256_shuffle_ps::<0xee>(a, b));
            }
            let even = _mm256_shuffle_ps::<0x88>(twos[0], twos[1]);
            let sums = _mm256_add_ps(even, _mm256_shuffle_ps::<0xdd>(twos[0], twos[1]));
            let mut totals = [0.0; 8];
            _mm256_storeu_ps(totals.as_mut_ptr(), sums);
            totals
        }
    }

    #[inline(always)]
    fn widen(from: &[f16; LANES]) -> [f32; LANES] {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
        let mut to = [0.0; LANES];
        for half in 0..2 {
            // SAFETY: this level stands for machines with F16C; eight elements are read and eight
            // written, inside arrays of sixteen.
            unsafe {
                let eight = _mm_loadu_si128(from.as_ptr().add(8 * half).cast());
                _mm256_storeu_ps(to.as_mut_ptr().add(8 * half), _mm256_cvtph_ps(eight));
            }
        }
        to
    }
}

/// The instruction set that kernels are compiled for and that this machine's path takes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Avx512,
    Avx2,
    Baseline,
}

#[cfg(target_arch = "x86_64")]
pub(super) fn found() -> Found {
    match path() {
        KernelPath::Portable => Found::Baseline,
        KernelPath::Avx2 => Found::Avx2,
        KernelPath::Avx512 | KernelPath::Bf16 | KernelPath::Amx => Found::Avx512,
    }
}

/// Asks for the line of the cache that an address is in, wherever it points.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a request for memory that is not there is ignored.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Compiles a function for every instruction set and calls the best one; its loops are written so
/// that the compiler vectorises them. `L` names the [`Level`] inside the body.
macro_rules! vectorised {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$L:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    )*) => { $(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<$L: $crate::kernels::cpu::level::Level>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::cpu::level::{Found, Fused, found};
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<Fused>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<Fused>($($arg),*)
                }
                match found() {
                    // SAFETY: these features were found on this machine.
                    Found::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Found::Avx2 => return unsafe { avx2($($arg),*) },
                    Found::Baseline => {}
                }
            }
            body::<$crate::kernels::cpu::level::Baseline>($($arg),*)
        }
    )* };
}
pub(super) use vectorised;
