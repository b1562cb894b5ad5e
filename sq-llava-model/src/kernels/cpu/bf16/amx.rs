//! Tiles with AMX. Its intrinsics are not stable, so the instructions are written out.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use half::bf16;

use super::{Sums, Tile};

/// Bytes between two rows of a tile in memory.
const STRIDE: usize = 64;

/// Whether the processor has AMX with bf16, the system grants its registers to this process, and
/// a first product is right.
pub(in super::super) fn granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| {
        if !(present() && request()) {
            return false;
        }
        let right = multiplies();
        if !right {
            tracing::warn!("AMX gives a wrong product on this machine; it is not used");
        }
        right
    })
}

/// Whether a product of small integers, which every order of sums gives alike, is right.
fn multiplies() -> bool {
    let tile = |seed: usize| {
        let mut tile = Tile::ZERO;
        for (i, value) in tile.0.iter_mut().enumerate() {
            *value = bf16::from_f32(((i * 7 + i / 32 * 5 + seed) % 13) as f32 - 6.0);
        }
        tile
    };
    let tiles: [[Tile; 2]; 4] = std::array::from_fn(|i| [tile(2 * i), tile(2 * i + 1)]);
    let [a, b, c, d] = tiles.each_ref().map(|tiles| &tiles[..]);
    let (mut found, mut expected) = (Sums::ZERO, Sums::ZERO);
    super::portable([a, b], [c, d], &mut expected);
    // SAFETY: the processor has AMX and the system has granted it; all rows have two tiles.
    unsafe {
        let _tiles = Configured::new();
        block([a, b], [c, d], &mut found);
    }
    found.0 == expected.0
}

/// Tiles (bit 24) and bf16 (bit 22) of leaf 7.
fn present() -> bool {
    is_x86_feature_detected!("avx512f") && {
        let found = __cpuid_count(7, 0).edx;
        found >> 24 & 1 == 1 && found >> 22 & 1 == 1
    }
}

/// Whether AMX multiplies 8-bit integers too (bit 25 of leaf 7).
pub(in super::super) fn has_int8() -> bool {
    granted() && __cpuid_count(7, 0).edx >> 25 & 1 == 1
}

/// Linux hands out the registers, 8 KB a thread, to processes that ask.
#[cfg(target_os = "linux")]
fn request() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers and touches no memory.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn request() -> bool {
    false
}

/// Shapes of the eight tiles: 16 rows of 64 bytes each.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1; // The palette.
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = STRIDE as u8; // Bytes of a row, in 16 bits.
        bytes[48 + tile] = 16; // Rows.
        tile += 1;
    }
    Config(bytes)
};

/// The thread's tiles; they are given back at its end.
pub(in super::super) struct Configured(());

impl Configured {
    /// # Safety
    /// AMX is [`granted`].
    pub(in super::super) unsafe fn new() -> Self {
        // SAFETY: the caller's promise; 64 bytes are read.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags));
        }
        Self(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: there is AMX, or there would be no value of this type.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// `sums = Σ left · right`.
///
/// # Safety
/// The thread has [`Configured`] tiles, and all rows of tiles are equally long.
pub(super) unsafe fn block(left: [&[Tile]; 2], right: [&[Tile]; 2], sums: &mut Sums) {
    // SAFETY: each turn reads one tile of 1 KB from each row, as many turns as tiles; 4 KB of sums
    // are written. Nothing else uses the tile registers.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {count}, {count}",
            "jz 3f",
            "2:",
            "tileloadd tmm4, [{a} + {stride}*1]",
            "tileloadd tmm6, [{c} + {stride}*1]",
            "tileloadd tmm5, [{b} + {stride}*1]",
            "tileloadd tmm7, [{d} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {b}, 1024",
            "add {c}, 1024",
            "add {d}, 1024",
            "dec {count}",
            "jnz 2b",
            "3:",
            "add {stride}, {stride}",
            "tilestored [{out} + {stride}*1], tmm0",
            "tilestored [{out} + {stride}*1 + 64], tmm1",
            "tilestored [{out} + {stride}*1 + 2048], tmm2",
            "tilestored [{out} + {stride}*1 + 2112], tmm3",
            a = inout(reg) left[0].as_ptr() => _,
            b = inout(reg) left[1].as_ptr() => _,
            c = inout(reg) right[0].as_ptr() => _,
            d = inout(reg) right[1].as_ptr() => _,
            count = inout(reg) left[0].len() => _,
            stride = inout(reg) STRIDE => _,
            out = in(reg) sums.0.as_mut_ptr(),
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

/// Four products of tiles a turn, in registers alone.
macro_rules! turns {
    ($(#[$meta:meta])* $name:ident, $instruction:literal) => {
        $(#[$meta])*
        pub(in super::super) unsafe fn $name(turns: u64) {
            if turns == 0 {
                return;
            }
            // SAFETY: the caller's promise; no memory is touched.
            unsafe {
                let _tiles = Configured::new();
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "tilezero tmm4",
                    "tilezero tmm5",
                    "tilezero tmm6",
                    "tilezero tmm7",
                    "2:",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    "dec {turns}",
                    "jnz 2b",
                    turns = inout(reg) turns => _,
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nomem, nostack),
                );
            }
        }
    };
}

turns! {
    /// Products of bf16 tiles.
    ///
    /// # Safety
    /// AMX is [`granted`].
    turns_bf16, "tdpbf16ps"
}

turns! {
    /// Products of tiles of 8-bit integers.
    ///
    /// # Safety
    /// [`has_int8`].
    turns_int8, "tdpbssd"
}
