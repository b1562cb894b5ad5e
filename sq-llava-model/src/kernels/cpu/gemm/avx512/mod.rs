//! Products in AVX-512: `Σ_k a[m, k] b[k, n]` in tiles of 14 × 32 that stay in registers.
//!
//! A is packed once, by all threads together: rows in panels of a tile's height, so that a tile
//! reads it from one end to the other. Then threads take strips of 32 columns of B, bring each
//! into a buffer that the core's own cache holds, and go down the panels with it; B is never
//! written whole. The depth is cut into parts so that a block of panels stays in that cache while
//! strips pass by. Where these cuts lie depends on the depth alone, so that sums do not depend on
//! who computes them.
//!
//! Whatever comes next is asked for while a tile is computed: weights come from memory, and a
//! core's reads wait long for it.

mod pack;
mod parts;
mod tile;

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use super::{Matrix, Onto};
use crate::kernels::cpu::level::{Found, found};
use crate::kernels::cpu::team::share;
use pack::{LANES, first, pack};
use parts::{Gate, Parts, Queue};
use tile::{Ahead, Base, COLUMNS, Lanes, Place, ROWS};

pub(super) use pack::Strip;

/// Most depth of a strip: 64 KB of B.
const DEPTH: usize = 512;
/// Depths are cut at multiples of this, the lines of a row.
const UNIT: usize = 16;
/// Most strips that a thread takes at once: it reads the block of A once for all of them.
const STRIPS: usize = 8;
/// Most elements of A that are packed at once, 16 MB.
const PACKED: usize = 4 << 20;
/// Pieces of work for each thread, if there are panels for that.
const PIECES: usize = 4;
/// Fewest panels of a block that is smaller than the cache allows.
const PANELS: usize = 3;

/// A matrix that is written.
pub(super) struct Out {
    pub(super) at: *mut f32,
    pub(super) row: usize,
}

/// A product: `out = onto + factor · a b`.
pub(super) struct Job<'a> {
    /// m, n and k.
    pub(super) sizes: [usize; 3],
    pub(super) a: Strip<'a>,
    pub(super) b: Strip<'a>,
    pub(super) out: Out,
    pub(super) factor: f32,
    pub(super) onto: Onto<'a>,
}

// SAFETY: its pointers are to memory that threads read, and to `out`, of which each thread writes
// tiles of its own.
unsafe impl Sync for Job<'_> {}

/// Columns and depth from which on a product is worth packing for.
const COLUMNS_LEAST: usize = 33;
const DEPTH_LEAST: usize = 32;
/// Depth up to which it is not, unless one thread computes a result that stays in its own cache.
const DEPTH_SMALL: usize = 128;
/// Elements of such a result.
const OUT_SMALL: usize = 1 << 16;
/// Rows from which on the crate's way of packing costs less, unless there are so many columns.
const ROWS_MANY: usize = 512;
const COLUMNS_MANY: usize = 1024;

/// Whether these products are faster than the crate's, by measurement (docs/performance.md, Emerald
/// Rapids, both cores): where B is transposed, which is every linear map and the scores of attention,
/// there are few rows or many columns, and there is enough to add up. B in rows the crate reads as it
/// lies.
pub(super) fn is_faster([m, n, k]: [usize; 3], b: &Matrix<'_>, shared: bool) -> bool {
    let deep = k > DEPTH_SMALL || !shared && k >= DEPTH_LEAST && m * n <= OUT_SMALL;
    let wide = n >= COLUMNS_MANY || m < ROWS_MANY && n >= COLUMNS_LEAST;
    b.is_turned() && wide && deep && is_there()
}

/// Whether the path of this machine is one with AVX-512.
pub(super) fn is_there() -> bool {
    found() == Found::Avx512
}

/// Elements of A that stay in a core's own cache: half of it, the rest for B and the result.
fn cached() -> usize {
    static CACHED: OnceLock<usize> = OnceLock::new();
    *CACHED.get_or_init(|| {
        // In KB, of Intel's and AMD's processors alike.
        let size = std::arch::x86_64::__cpuid(0x8000_0006).ecx >> 16;
        size.clamp(512, 4096) as usize * 1024 / 4 / 2
    })
}

/// Memory that a thread keeps for packed numbers, at lines of the cache.
#[derive(Default)]
struct Buffer(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

impl Buffer {
    fn room(&mut self, len: usize) -> *mut f32 {
        let lines = len.div_ceil(LANES);
        if self.0.len() < lines {
            // The old numbers need not be moved.
            self.0 = Vec::new();
            self.0.resize(lines, Line([0.0; LANES]));
        }
        self.0.as_mut_ptr().cast()
    }
}

thread_local! {
    static LEFT: Cell<Buffer> = const { Cell::new(Buffer(Vec::new())) };
    static RIGHT: Cell<Buffer> = const { Cell::new(Buffer(Vec::new())) };
}

/// How a product is cut.
struct Plan {
    /// Rows of the result in panels.
    panels: Parts,
    /// Panels in blocks.
    blocks: Parts,
    /// Depth in parts, in units.
    depths: Parts,
    strips: usize,
    /// Packed A.
    left: *mut f32,
    packing: Gate,
    queue: Queue,
}

// SAFETY: each thread writes panels of its own to `left`, and reads them behind the gate.
unsafe impl Sync for Plan {}

impl Plan {
    fn depth(&self, part: usize, k: usize) -> usize {
        (self.depths.start(part) * UNIT).min(k)
    }

    /// Rows of a panel, packed, from a depth on.
    fn packed(&self, rows: &Range<usize>, depth: usize, k: usize) -> *const f32 {
        let skip = rows.start * k + depth * rows.len();
        self.left.wrapping_add(skip)
    }
}

/// Computes a product with so many threads: the calling one, and others of the pool.
///
/// # Safety
/// All elements that the sizes reach can be read of `a` and `b`, and written (and read with
/// [`Onto::Out`]) at `out`, and a row of `n` with [`Onto::Row`]; the machine has AVX-512.
pub(super) unsafe fn run(job: &Job<'_>, threads: usize) {
    let [m, n, k] = job.sizes;
    // Taken away: a thread that waits for others may compute another product meanwhile.
    let mut left = LEFT.take();
    let groups = Parts::new(m, (PACKED / k).max(ROWS));
    for group in (0..groups.count).map(|group| groups.range(group)) {
        let part = Job {
            sizes: [group.len(), n, k],
            a: job.a.from(group.start, 0),
            out: Out {
                at: job.out.at.wrapping_add(group.start * job.out.row),
                row: job.out.row,
            },
            ..*job
        };
        let plan = plan(part.sizes, left.room(group.len() * k), threads);
        // SAFETY: the caller's promise; these are rows of it.
        let work = || unsafe { work(&part, &plan) };
        // Each takes what is left of it, whenever it comes.
        share(threads, &|_| work());
    }
    LEFT.set(left);
}

fn plan([m, n, k]: [usize; 3], left: *mut f32, threads: usize) -> Plan {
    let panels = Parts::new(m, ROWS);
    let depths = Parts::new(k.div_ceil(UNIT), DEPTH / UNIT);
    let deep = k.div_ceil(depths.count);
    let strips = n.div_ceil(COLUMNS);
    let blocks = Parts::new(panels.count, cached() / deep / ROWS);
    let blocks = match threads {
        1 => blocks,
        _ => {
            let wanted = (PIECES * threads).div_ceil(strips);
            blocks.at_least(wanted.min(panels.count.div_ceil(PANELS)))
        }
    };
    Plan {
        packing: Gate::new(panels.count),
        queue: Queue::new(blocks.count, strips, threads, STRIPS),
        panels,
        blocks,
        depths,
        strips,
        left,
    }
}

/// What each thread does.
///
/// # Safety
/// As [`run`]; `left` has room for A.
unsafe fn work(job: &Job<'_>, plan: &Plan) {
    let [_, _, k] = job.sizes;
    plan.packing.pass(|panel| {
        let rows = plan.panels.range(panel);
        let from = job.a.from(rows.start, 0);
        // SAFETY: these are rows of A, and their place in the buffer is this panel's alone.
        unsafe {
            let to = plan.left.add(rows.start * k);
            pack(from, rows.len(), k, to, rows.len(), false);
        }
    });
    let mut right = RIGHT.take();
    let buffer = right.room(DEPTH * COLUMNS);
    while let Some((block, strips)) = plan.queue.take() {
        for part in 0..plan.depths.count {
            for strip in strips.clone() {
                let next = match () {
                    () if strip + 1 < strips.end => (strip + 1, part),
                    () if part + 1 < plan.depths.count => (strips.start, part + 1),
                    () => ((strip + 1).min(plan.strips - 1), 0),
                };
                let at = At {
                    block,
                    part,
                    strip,
                    next,
                    fresh: strip == strips.start,
                };
                // SAFETY: the caller's promise; the buffer has room for a strip.
                unsafe { column_of_tiles(job, plan, &at, buffer) };
            }
        }
    }
    RIGHT.set(right);
}

/// Tiles below each other.
struct At {
    block: usize,
    /// Of the depth.
    part: usize,
    strip: usize,
    /// Strip and part that come next.
    next: (usize, usize),
    /// Whether the block of A is not in the cache yet.
    fresh: bool,
}

/// The tiles of a strip and a block, for a part of the depth.
///
/// # Safety
/// As [`run`]; A is packed, and `buffer` has room for a strip.
unsafe fn column_of_tiles(job: &Job<'_>, plan: &Plan, at: &At, buffer: *mut f32) {
    let [_, n, k] = job.sizes;
    let (from, to) = (plan.depth(at.part, k), plan.depth(at.part + 1, k));
    let depth = to - from;
    let column = at.strip * COLUMNS;
    let columns = (n - column).min(COLUMNS);
    let vectors = columns.div_ceil(LANES);
    let b = job.b.from(column, from);
    let width = vectors * LANES;
    for v in 0..vectors {
        let lanes = (columns - v * LANES).min(LANES);
        // SAFETY: these lanes and depths lie in B, and a strip in the buffer.
        unsafe {
            let to = buffer.add(v * LANES);
            pack(b.from(v * LANES, 0), lanes, depth, to, width, true);
        }
    }
    let right = Lanes {
        at: buffer,
        step: width,
    };
    let mask = first(columns - (vectors - 1) * LANES);
    let base = match job.onto {
        _ if at.part > 0 => Base::Out,
        Onto::Nothing => Base::Nothing,
        Onto::Out => Base::Out,
        Onto::Row(row) => Base::Row(row.as_ptr().wrapping_add(column)),
    };
    let panels = plan.blocks.range(at.block);
    let mut requests = requests(job, plan, at);
    for panel in panels {
        let rows = plan.panels.range(panel);
        let a = Lanes {
            at: plan.packed(&rows, from, k),
            step: rows.len(),
        };
        let place = Place {
            at: job.out.at.wrapping_add(rows.start * job.out.row + column),
            row: job.out.row,
            mask,
            factor: job.factor,
            base,
        };
        let ahead = requests.next(plan, panel, from, k);
        // SAFETY: the caller's promise; these rows and columns lie inside, and the mask ends with
        // the last column.
        unsafe { tile::of(rows.len(), vectors)(depth, a, right, place, ahead) };
    }
}

/// What the tiles of a column ask for: the next strip of B, a part of it each, and, where it is not
/// in the cache, the panel of A behind the own one.
struct Requests {
    ahead: Ahead,
    /// Elements of B between the parts of two tiles.
    tile: usize,
    fresh: bool,
}

fn requests(job: &Job<'_>, plan: &Plan, at: &At) -> Requests {
    let [_, _, k] = job.sizes;
    let tiles = plan.blocks.range(at.block).len();
    let (strip, part) = at.next;
    let b = job.b.from(strip * COLUMNS, plan.depth(part, k));
    // Columns of B whose elements stand together, each from one end to the other.
    let count = if b.step == 1 {
        COLUMNS.div_ceil(tiles)
    } else {
        0
    };
    Requests {
        ahead: Ahead {
            right: b.at,
            count,
            hop: b.lane,
            step: tile::TURN,
            left: std::ptr::null(),
            lines: 0,
        },
        tile: count * b.lane,
        fresh: at.fresh,
    }
}

impl Requests {
    fn next(&mut self, plan: &Plan, panel: usize, from: usize, k: usize) -> Ahead {
        let mut ahead = self.ahead;
        self.ahead.right = self.ahead.right.wrapping_add(self.tile);
        if self.fresh && panel + 1 < plan.panels.count {
            let rows = plan.panels.range(panel + 1);
            ahead.left = plan.packed(&rows, from, k);
            ahead.lines = tile::TURN * rows.len() / LANES;
        }
        ahead
    }
}
