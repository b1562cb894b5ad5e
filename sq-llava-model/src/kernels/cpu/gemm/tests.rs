//! Products against sums in f64.

use super::*;
use sq_llava_data::mix::splitmix64;

/// Numbers between −1 and 1 that depend on the seed.
fn draw(count: usize, seed: u64) -> Vec<f32> {
    let mut state = splitmix64(seed);
    let mut next = || {
        state = splitmix64(state);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug)]
enum Order {
    Rows,
    Columns,
    /// Rows, and room between all elements.
    Apart,
}

const ORDERS: [Order; 3] = [Order::Rows, Order::Columns, Order::Apart];

/// Rows and columns of a matrix, and how far its elements are apart.
struct Stored {
    data: Vec<f32>,
    row: usize,
    column: usize,
}

impl Stored {
    /// With no room behind the last element.
    fn new(rows: usize, columns: usize, order: Order, seed: u64) -> Self {
        let (row, column) = match order {
            Order::Rows => (columns + 3, 1),
            Order::Columns => (1, rows),
            Order::Apart => (2 * columns + 1, 2),
        };
        let len = match rows * columns {
            0 => 0,
            _ => (rows - 1) * row + (columns - 1) * column + 1,
        };
        Self {
            data: draw(len, seed),
            row,
            column,
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::strided(&self.data, self.row, self.column)
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        f64::from(self.data[row * self.row + column * self.column])
    }
}

#[derive(Clone, Copy, Debug)]
enum To {
    Nothing,
    Out,
    Row,
}

/// A product and what it is made of.
struct Case {
    sizes: [usize; 3],
    factor: f32,
    to: To,
    what: String,
    a: Stored,
    b: Stored,
    /// The result before, with two elements behind each row.
    before: Vec<f32>,
    row: Vec<f32>,
}

impl Case {
    fn new(sizes @ [m, n, k]: [usize; 3], orders: [Order; 2], factor: f32, to: To) -> Self {
        Self {
            sizes,
            factor,
            to,
            what: format!("{sizes:?} {orders:?} · {factor} onto {to:?}"),
            a: Stored::new(m, k, orders[0], 1),
            b: Stored::new(k, n, orders[1], 2),
            before: draw(m * (n + 2), 3),
            row: draw(n, 4),
        }
    }

    /// The result as it is asked for, and by the own product if the machine has it.
    fn computed(&self, threads: Threads) -> Vec<Vec<f32>> {
        let (sizes, out_row) = (self.sizes, self.sizes[1] + 2);
        let (a, b) = (self.a.matrix(), self.b.matrix());
        let onto = match self.to {
            To::Nothing => Onto::Nothing,
            To::Out => Onto::Out,
            To::Row => Onto::Row(&self.row),
        };
        let mut out = self.before.clone();
        let at = out.as_mut_ptr();
        // SAFETY: the result has all rows, of more elements than are written.
        unsafe { product_at(sizes, self.factor, a, b, at, out_row, onto, threads) };
        let mut outs = vec![out];
        #[cfg(target_arch = "x86_64")]
        if avx512::is_there() && sizes.iter().all(|&size| size > 0) {
            let mut out = self.before.clone();
            let count = match threads {
                Threads::One => 1,
                Threads::Pool => rayon::current_num_threads(),
            };
            let at = out.as_mut_ptr();
            // SAFETY: as above, and the operands are as large as the sizes say.
            unsafe { own(sizes, self.factor, a, b, at, out_row, onto, count) };
            outs.push(out);
        }
        outs
    }

    fn expected(&self, i: usize, j: usize) -> f64 {
        let [_, n, k] = self.sizes;
        let sum: f64 = (0..k).map(|d| self.a.at(i, d) * self.b.at(d, j)).sum();
        let sum = f64::from(self.factor) * sum;
        match self.to {
            To::Nothing => sum,
            To::Out => sum + f64::from(self.before[i * (n + 2) + j]),
            To::Row => sum + f64::from(self.row[j]),
        }
    }

    /// Compares results with sums in f64; what lies between their rows must have stayed.
    fn check(&self, outs: &[Vec<f32>]) {
        let ([m, n, k], what) = (self.sizes, &self.what);
        // Sums of numbers up to 1: what rounding each step may cost, many times over less.
        let bound = 1.6e-6 * (4.0 + k as f64).sqrt() * f64::from(self.factor.abs().max(1.0));
        for i in 0..m {
            for j in 0..n + 2 {
                let at = i * (n + 2) + j;
                if j >= n {
                    let same = outs.iter().all(|out| out[at] == self.before[at]);
                    assert!(same, "{what}: behind row {i}");
                    continue;
                }
                let expected = self.expected(i, j);
                for found in outs.iter().map(|out| out[at]) {
                    let error = (f64::from(found) - expected).abs();
                    assert!(error <= bound, "{what}: {found} for {expected} at {i}, {j}");
                }
            }
        }
    }
}

fn check(sizes: [usize; 3], orders: [Order; 2], factor: f32, to: To) {
    let case = Case::new(sizes, orders, factor, to);
    case.check(&case.computed(Threads::One));
}

fn bits(outs: Vec<Vec<f32>>) -> Vec<u32> {
    outs.into_iter().flatten().map(f32::to_bits).collect()
}

#[test]
fn all_small_sizes_and_orders() {
    for (i, m) in (1..=40).chain([57]).enumerate() {
        for n in (1..=40)
            .step_by(3)
            .chain([16, 32, 33, 48, 49, 63, 64, 65, 70])
        {
            let k = [1, 3, 16, 32, 33, 34, 39, 66][(i + n) % 8];
            let orders = [ORDERS[(i + n) % 3], ORDERS[(i / 3 + n) % 3]];
            let to = [To::Nothing, To::Out, To::Row][(i + n / 3) % 3];
            let factor = [1.0, -0.37][n % 2];
            check([m, n, k], orders, factor, to);
        }
    }
}

#[test]
fn every_order_onto_everything() {
    for left in ORDERS {
        for right in ORDERS {
            for to in [To::Nothing, To::Out, To::Row] {
                for sizes in [[30, 45, 70], [15, 32, 20], [1, 64, 9], [61, 41, 1030]] {
                    check(sizes, [left, right], 0.5, to);
                }
            }
        }
    }
}

#[test]
fn nothing_to_sum_and_nothing_to_write() {
    for to in [To::Nothing, To::Out, To::Row] {
        for sizes in [[3, 5, 0], [0, 5, 4], [3, 0, 4]] {
            check(sizes, [Order::Rows; 2], 2.0, to);
        }
    }
    let none = Matrix::rows(&[], 0);
    let zeros = new_product([2, 3, 0], 1.0, none, none, Threads::Pool);
    assert_eq!(zeros, [0.0; 6]);
}

#[test]
fn the_same_bits_with_any_number_of_threads() {
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool")
    };
    let pools = [1, 2, 3, 7].map(pool);
    // Large enough for the pool, some with several blocks, parts of the depth and few columns.
    let cases = [
        ([230, 161, 1100], Order::Rows, Order::Columns),
        ([1300, 50, 1030], Order::Columns, Order::Columns),
        ([20, 1100, 530], Order::Rows, Order::Columns),
        ([96, 700, 40], Order::Rows, Order::Rows),
        ([900, 16, 150], Order::Columns, Order::Rows),
        ([16, 900, 150], Order::Columns, Order::Rows),
        ([700, 48, 70], Order::Columns, Order::Columns),
        ([900, 300, 610], Order::Rows, Order::Columns),
        ([530, 1020, 520], Order::Rows, Order::Rows),
    ];
    for (sizes, left, right) in cases {
        for to in [To::Nothing, To::Out] {
            let case = Case::new(sizes, [left, right], 1.0, to);
            let one = case.computed(Threads::One);
            case.check(&one);
            let one = bits(one);
            let outside = bits(case.computed(Threads::Pool));
            assert!(one == outside, "{sizes:?}, outside");
            for pool in &pools {
                let inside = pool.install(|| bits(case.computed(Threads::Pool)));
                assert!(one == inside, "{sizes:?}, inside");
            }
        }
    }
}

#[test]
fn products_inside_products_of_the_pool() {
    use rayon::prelude::*;
    let case = Case::new(
        [120, 180, 130],
        [Order::Rows, Order::Columns],
        1.0,
        To::Nothing,
    );
    let one = bits(case.computed(Threads::One));
    let all: Vec<bool> = (0..40)
        .into_par_iter()
        .map(|_| bits(case.computed(Threads::Pool)) == one)
        .collect();
    assert!(all.iter().all(|&same| same));
}
