//! Packing: which samples of an optimizer step share a row.
//!
//! Packs are made of the samples of one step and of nothing else, so that with or without packing a
//! step learns the same, and a resumed run finds the same packs again.

use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Numbers of rows that are tried.
const TRIED: usize = 64;

/// Packs samples of these lengths into rows of at most `most` tokens and deals those to at most
/// `batches` batches, of which `beside` at a time are computed side by side, so that this takes
/// little time: best fit fills rows, but where more rows leave less padding behind them, or share
/// the work better, these are taken. A sample that is longer than `most` has a row of its own.
/// Returns the places of the samples in each row of each batch.
pub(crate) fn packed(
    lengths: &[usize],
    most: usize,
    batches: usize,
    beside: usize,
) -> Vec<Vec<Vec<usize>>> {
    let tokens = |row: &Vec<usize>| row.iter().map(|&sample| lengths[sample]).sum::<usize>();
    let batch = |rows: &Vec<Vec<usize>>| {
        let longest = rows.iter().map(tokens).max().unwrap_or(0);
        rows.len() * longest
    };
    // Tokens with padding that are waited for, and all.
    let cost = |dealt: &Vec<Vec<Vec<usize>>>| -> (usize, usize) {
        let all: Vec<usize> = dealt.iter().map(batch).collect();
        let rounds = all
            .chunks(beside.max(1))
            .filter_map(|round| round.iter().max());
        (rounds.sum(), all.iter().sum())
    };
    let full = best_fit(lengths, most);
    let fits = |row: &Vec<usize>| row.len() == 1 || tokens(row) <= most;
    let more = full.len()..=lengths.len().min(full.len() + TRIED);
    let even = more
        .map(|rows| spread(lengths, rows))
        .filter(|rows| rows.iter().all(fits));
    let all = std::iter::once(full).chain(even);
    // Of equals the first: the fewest rows.
    let dealt = all.map(|rows| deal(rows, batches));
    dealt.min_by_key(cost).unwrap_or_default()
}

/// The longest first, each into the fullest row that has room for it, or a new one.
fn best_fit(lengths: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // Room that is left in each row, and the row.
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for sample in longest_first(lengths) {
        let length = lengths[sample];
        let fullest = rooms.range((length, 0)..).next().copied();
        let (room, row) = match fullest {
            Some(found) => {
                rooms.remove(&found);
                found
            }
            None => {
                rows.push(Vec::new());
                (most.max(length), rows.len() - 1)
            }
        };
        rows[row].push(sample);
        rooms.insert((room - length, row));
    }
    rows
}

/// The longest first, each into the shortest of so many rows.
fn spread(lengths: &[usize], rows: usize) -> Vec<Vec<usize>> {
    let mut spread = vec![Vec::new(); rows];
    let mut shortest: BTreeSet<(usize, usize)> = (0..rows).map(|row| (0, row)).collect();
    for sample in longest_first(lengths) {
        let Some((tokens, row)) = shortest.pop_first() else {
            break;
        };
        spread[row].push(sample);
        shortest.insert((tokens + lengths[sample], row));
    }
    spread
}

/// The sort is stable, so samples of one length stay in their order.
fn longest_first(lengths: &[usize]) -> Vec<usize> {
    let mut samples: Vec<usize> = (0..lengths.len()).collect();
    samples.sort_by_key(|&sample| Reverse(lengths[sample]));
    samples
}

/// Deals rows to at most `batches` batches in turn, so that all have about as many rows and samples.
fn deal<T>(rows: Vec<T>, batches: usize) -> Vec<Vec<T>> {
    let count = batches.min(rows.len());
    let mut dealt: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
    for (index, row) in rows.into_iter().enumerate() {
        dealt[index % count].push(row);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths_of(lengths: &[usize], rows: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
        let own = |row: Vec<usize>| row.into_iter().map(|i| lengths[i]).collect();
        rows.into_iter().map(own).collect()
    }

    #[test]
    fn the_fullest_row_with_room_is_taken() {
        let fit = |lengths: &[usize]| lengths_of(lengths, best_fit(lengths, 10));
        // 3 would fit behind 6 too.
        assert_eq!(
            fit(&[2, 7, 3, 6, 1, 4]),
            [vec![7, 3], vec![6, 4], vec![2, 1]]
        );
        assert_eq!(fit(&[5, 5, 5]), [vec![5, 5], vec![5]]);
        assert_eq!(fit(&[12, 4]), [vec![12], vec![4]]);
        assert!(fit(&[]).is_empty());
    }

    #[test]
    fn rows_are_much_of_a_length() {
        let rows = |lengths: &[usize]| {
            let dealt = packed(lengths, 10, 1, 1).into_iter();
            lengths_of(lengths, dealt.flatten().collect())
        };
        assert_eq!(
            rows(&[2, 7, 3, 6, 1, 4]),
            [vec![7, 1], vec![6, 2], vec![4, 3]]
        );
        assert_eq!(rows(&[12, 4, 3]), [vec![12], vec![4, 3]]);
        // Not one row of 9 and one of 3.
        assert_eq!(rows(&[3; 4]), [vec![3, 3], vec![3, 3]]);
        assert!(rows(&[]).is_empty());
    }

    #[test]
    fn a_batch_for_each_row_needs_no_even_rows() {
        let dealt = packed(&[3; 4], 10, 4, 1);
        assert_eq!(dealt, [vec![vec![0, 1, 2]], vec![vec![3]]]);
    }

    #[test]
    fn batches_side_by_side_have_as_much_to_do() {
        let tokens = |beside| -> Vec<usize> {
            let lengths = [5, 5, 4, 4, 3, 3];
            let dealt = packed(&lengths, 10, 2, beside).into_iter();
            let batch = |rows: Vec<Vec<usize>>| rows.concat().iter().map(|&i| lengths[i]).sum();
            dealt.map(batch).collect()
        };
        // Three rows of eight have no padding, and two of them stand in one batch.
        assert_eq!(tokens(1), [16, 8]);
        assert_eq!(tokens(2), [12, 12]);
    }

    #[test]
    fn every_sample_is_in_one_row_that_holds_it() {
        let lengths: Vec<usize> = (0..500).map(|i| 1 + i * 7919 % 300).collect();
        for most in [1, 64, 300, 2048] {
            let packed: Vec<_> = packed(&lengths, most, 7, 2).concat();
            let mut all = packed.concat();
            all.sort_unstable();
            assert_eq!(all, (0..500).collect::<Vec<_>>());
            for row in &packed {
                let tokens: usize = row.iter().map(|&i| lengths[i]).sum();
                assert!(tokens <= most || row.len() == 1, "{tokens} of {most}");
            }
        }
        // No two rows of 2048 could be one.
        let tokens: usize = lengths.iter().sum();
        assert_eq!(best_fit(&lengths, 2048).len(), tokens.div_ceil(2048));
    }

    #[test]
    fn rows_are_dealt_in_turn() {
        assert_eq!(deal(vec![1, 2, 3, 4, 5], 2), [vec![1, 3, 5], vec![2, 4]]);
        assert_eq!(deal(vec![1, 2], 4), [vec![1], vec![2]]);
        assert!(deal(Vec::<u8>::new(), 4).is_empty());
    }
}
