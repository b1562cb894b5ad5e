//! Instruction sets, found at run time.

use burn::tensor::f16;

use super::math::LANES;

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

/// The best instruction set of this machine that kernels are compiled for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Avx512,
    Avx2,
    Baseline,
}

#[cfg(target_arch = "x86_64")]
pub(super) fn found() -> Found {
    use std::sync::OnceLock;
    static FOUND: OnceLock<Found> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        match (avx2, avx512) {
            (true, true) => Found::Avx512,
            (true, false) => Found::Avx2,
            _ => Found::Baseline,
        }
    })
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
