//! Sums over the units of a cube.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// Sum of each unit's value, known to all of them. The order is always the same.
#[cube]
pub(super) fn cube_sum(value: f32, #[comptime] units: u32) -> f32 {
    let mut shared = SharedMemory::<f32>::new(units as usize);
    let unit = UNIT_POS;
    shared[unit as usize] = value;
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        sync_cube();
        if unit < step {
            let other = shared[(unit + step) as usize];
            shared[unit as usize] += other;
        }
        step /= 2;
    }
    sync_cube();
    shared[0]
}

/// Largest of the units' values, known to all of them.
#[cube]
pub(super) fn cube_max(value: f32, #[comptime] units: u32) -> f32 {
    let mut shared = SharedMemory::<f32>::new(units as usize);
    let unit = UNIT_POS;
    shared[unit as usize] = value;
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        sync_cube();
        if unit < step {
            let other = shared[(unit + step) as usize];
            shared[unit as usize] = max(shared[unit as usize], other);
        }
        step /= 2;
    }
    sync_cube();
    shared[0]
}
