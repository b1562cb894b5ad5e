//! The processor, and which kernels run on it.
//!
//! A path stands for a set of instructions that kernels are written for, each with those before
//! it. The best one of the machine is taken; the environment variable `SQ_LLAVA_CPU` takes another
//! one of the machine's, for tests and comparisons. f32 products that are left to the `gemm` crate
//! choose for themselves.

use std::fmt;
use std::sync::OnceLock;

use thiserror::Error;

/// Names the path.
pub const VARIABLE: &str = "SQ_LLAVA_CPU";

/// Instructions that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelPath {
    /// What the compiler's target always has.
    Portable,
    /// AVX2 with fused multiply-add and f16 conversion.
    Avx2,
    /// AVX-512 (F, VL, BW, DQ), with its integer products (VNNI) where they are there.
    Avx512,
    /// AVX-512 with products of bf16 pairs: weights in bf16 are multiplied in bf16.
    Bf16,
    /// AMX tiles: weights in bf16 are multiplied in bf16.
    Amx,
}

/// A path was asked for that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{VARIABLE} is \"{asked}\"; this processor has {has}")]
pub struct PathError {
    asked: String,
    has: String,
}

impl KernelPath {
    /// All that are known, the least first.
    pub const ALL: [Self; 5] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx512,
        Self::Bf16,
        Self::Amx,
    ];

    /// The name that `SQ_LLAVA_CPU` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Bf16 => "bf16",
            Self::Amx => "amx",
        }
    }

    /// Those of this machine, the least first.
    pub fn available() -> Vec<Self> {
        let all = Self::ALL.into_iter();
        all.filter(|path| path.is_available()).collect()
    }

    /// Whether this machine has the instructions and the system grants them.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
            }
            Self::Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            Self::Amx => Self::Bf16.is_available() && super::bf16::amx::granted(),
        }
    }

    /// Whether this machine has the instructions and the system grants them.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// Whether it multiplies weights in bf16 in bf16.
    pub fn multiplies_bf16(self) -> bool {
        self >= Self::Bf16
    }

    /// The fastest of this machine. Intel's processors multiply pairs of bf16 numbers in vectors at
    /// half the speed of f32 (Emerald Rapids: 86 against 181 GFLOP/s on one core); AMD's, by its
    /// tables, at twice that speed. AMX has run in an emulator only, where its results were right.
    fn fastest() -> Self {
        let taken = |path: &Self| match path {
            Self::Bf16 => vendor() == "AuthenticAMD",
            _ => true,
        };
        let mut paths = Self::ALL.into_iter().rev().filter(taken);
        paths
            .find(|path| path.is_available())
            .unwrap_or(Self::Portable)
    }

    /// The path that kernels take here.
    ///
    /// # Errors
    /// If `SQ_LLAVA_CPU` names another one than those of this machine.
    pub fn chosen() -> Result<Self, PathError> {
        static CHOSEN: OnceLock<Result<KernelPath, PathError>> = OnceLock::new();
        let choose = || match std::env::var_os(VARIABLE) {
            None => Ok(Self::fastest()),
            Some(name) => Self::named(&name.to_string_lossy()),
        };
        CHOSEN.get_or_init(choose).clone()
    }

    fn named(name: &str) -> Result<Self, PathError> {
        let asked = Self::ALL.into_iter().find(|path| path.name() == name);
        asked.filter(|path| path.is_available()).ok_or_else(|| {
            let has: Vec<&str> = Self::available().iter().map(|path| path.name()).collect();
            PathError {
                asked: name.to_owned(),
                has: has.join(", "),
            }
        })
    }
}

impl fmt::Display for KernelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// As [`KernelPath::chosen`], for kernels. A program asks that first and says what is wrong.
pub(super) fn path() -> KernelPath {
    match KernelPath::chosen() {
        Ok(path) => path,
        Err(error) => panic!("{error}"),
    }
}

/// Who made the processor, in its own 12 letters.
fn vendor() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        return letters(&[leaf.ebx, leaf.edx, leaf.ecx]);
    }
    #[allow(unreachable_code)]
    String::new()
}

/// What the processor calls itself.
pub fn processor_name() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        let first = 0x8000_0002;
        if __cpuid(0x8000_0000).eax >= first + 2 {
            let leaves = [0, 1, 2].map(|i| __cpuid(first + i));
            let words = leaves.map(|l| [l.eax, l.ebx, l.ecx, l.edx]).concat();
            let id = __cpuid(1).eax;
            let base = id >> 8 & 15;
            let family = if base == 15 {
                base + (id >> 20 & 255)
            } else {
                base
            };
            let model = (id >> 4 & 15) | (id >> 12 & 0xf0);
            return format!(
                "{} (family {family}, model {model})",
                letters(&words).trim()
            );
        }
    }
    std::env::consts::ARCH.to_owned()
}

#[cfg(target_arch = "x86_64")]
fn letters(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let text = String::from_utf8_lossy(&bytes);
    text.trim_matches(char::from(0)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_taken_and_others_refused() {
        for path in KernelPath::ALL {
            let named = KernelPath::named(path.name());
            assert_eq!(named.is_ok(), path.is_available(), "{path}");
        }
        let error = KernelPath::named("sse").unwrap_err().to_string();
        assert!(error.contains("SQ_LLAVA_CPU is \"sse\""), "{error}");
        assert!(error.contains("portable"), "{error}");
    }

    #[test]
    fn a_processor_has_a_name() {
        assert!(!processor_name().is_empty());
    }
}
