//! Sums over the units of a cube.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// Sum of the values of the `units` units that stand in line with this one, a power of two, known
/// to all of them. The order is always the same. `shared` has a place for each unit of the cube and
/// may serve several sums one behind the other.
#[cube]
pub(super) fn line_sum(shared: &mut SharedMemory<f32>, value: f32, #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS;
    // Another unit may still read the sum before.
    sync_cube();
    shared[unit as usize] = value;
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        sync_cube();
        if unit % units < step {
            let other = shared[(unit + step) as usize];
            shared[unit as usize] += other;
        }
        step /= 2;
    }
    sync_cube();
    shared[(unit / units * units) as usize]
}

/// As [`line_sum`], the largest of the values.
#[cube]
pub(super) fn line_max(shared: &mut SharedMemory<f32>, value: f32, #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS;
    sync_cube();
    shared[unit as usize] = value;
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        sync_cube();
        if unit % units < step {
            let other = shared[(unit + step) as usize];
            shared[unit as usize] = max(shared[unit as usize], other);
        }
        step /= 2;
    }
    sync_cube();
    shared[(unit / units * units) as usize]
}
