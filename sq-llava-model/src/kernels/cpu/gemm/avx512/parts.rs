//! Cutting work into even parts, and handing them to threads.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `total` units in `count` parts that differ by one unit at most.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    total: usize,
    pub(super) count: usize,
}

impl Parts {
    /// Parts of at most `most` units.
    pub(super) fn new(total: usize, most: usize) -> Self {
        let count = total.div_ceil(most.max(1)).max(1);
        Self { total, count }
    }

    /// In `count` parts or more, as far as there are units for them.
    pub(super) fn at_least(self, count: usize) -> Self {
        let count = self.count.max(count.min(self.total)).max(1);
        Self { count, ..self }
    }

    /// First unit of a part; behind the last part it is the total.
    #[inline(always)]
    pub(super) fn start(&self, part: usize) -> usize {
        // The first ones are one longer.
        let (size, longer) = (self.total / self.count, self.total % self.count);
        part * size + part.min(longer)
    }

    #[inline(always)]
    pub(super) fn range(&self, part: usize) -> Range<usize> {
        self.start(part)..self.start(part + 1)
    }
}

/// Pieces of work, the columns of several blocks one behind the other, that threads take as they
/// get to them: several at first and one at a time in the end, so that all end together.
pub(super) struct Queue {
    next: AtomicUsize,
    blocks: usize,
    columns: usize,
    threads: usize,
    most: usize,
}

impl Queue {
    /// At most `most` columns at a time.
    pub(super) fn new(blocks: usize, columns: usize, threads: usize, most: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            blocks,
            columns,
            threads,
            most,
        }
    }

    /// The next columns of a block, and the block.
    pub(super) fn take(&self) -> Option<(usize, Range<usize>)> {
        let total = self.blocks * self.columns;
        let end = |at: usize| {
            let take = ((total - at) / (2 * self.threads)).clamp(1, self.most);
            (at + take).min((at / self.columns + 1) * self.columns)
        };
        let step = |at: usize| (at < total).then(|| end(at));
        let order = Ordering::Relaxed;
        let at = self.next.fetch_update(order, order, step).ok()?;
        let block = at / self.columns;
        let first = block * self.columns;
        Some((block, at - first..end(at) - first))
    }
}

/// Pieces of work that must all be done before any thread goes on.
pub(super) struct Gate {
    next: AtomicUsize,
    done: AtomicUsize,
    count: usize,
}

/// How often a thread looks before it lets others run.
const LOOKS: usize = 1 << 12;

impl Gate {
    pub(super) fn new(count: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            count,
        }
    }

    /// Does pieces until all are done, by this thread and by those that do the same. It waits for
    /// threads that are at work only, never for one that has not begun.
    pub(super) fn pass(&self, piece: impl Fn(usize)) {
        loop {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            if next >= self.count {
                break;
            }
            piece(next);
            self.done.fetch_add(1, Ordering::Release);
        }
        let mut looks = 0;
        while self.done.load(Ordering::Acquire) < self.count {
            looks += 1;
            match looks % LOOKS {
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even_and_all_of_it() {
        for total in 0..60 {
            for most in 1..20 {
                let parts = Parts::new(total, most);
                let sizes: Vec<usize> = (0..parts.count).map(|i| parts.range(i).len()).collect();
                assert_eq!(sizes.iter().sum::<usize>(), total);
                assert_eq!(parts.start(parts.count), total);
                assert!(sizes.iter().all(|&size| size <= most));
                let (least, largest) = (sizes.iter().min(), sizes.iter().max());
                assert!(largest.unwrap() - least.unwrap() <= 1);
                assert!(parts.at_least(7).count >= parts.count.max(total.clamp(1, 7)));
            }
        }
    }

    #[test]
    fn every_column_is_taken_once() {
        for (blocks, columns, threads, most) in [(1, 1, 1, 8), (3, 7, 2, 8), (2, 90, 4, 6)] {
            let queue = Queue::new(blocks, columns, threads, most);
            let mut taken = vec![0; blocks * columns];
            let mut last = usize::MAX;
            while let Some((block, range)) = queue.take() {
                assert!(!range.is_empty() && range.end <= columns && range.len() <= most);
                last = range.len();
                for column in range {
                    taken[block * columns + column] += 1;
                }
            }
            assert_eq!(last, 1);
            assert!(taken.iter().all(|&times| times == 1));
        }
    }

    #[test]
    fn all_pieces_are_done_behind_a_gate() {
        let (gate, pieces) = (Gate::new(100), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    gate.pass(|_| {
                        pieces.fetch_add(1, Ordering::Relaxed);
                    });
                    assert_eq!(pieces.load(Ordering::Relaxed), 100);
                });
            }
        });
    }
}
