//! What the ranks of a run can do together.

use std::sync::mpsc::Receiver;

/// All ranks, as this one sees them. Every rank asks for the same things in the same order; they
/// are done in that order while the rank goes on with its work. A channel that closes without a
/// result is that of a world that has ended.
pub(super) trait World: Send + Sync {
    /// This one's number, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// The sum of what every rank gives, value by value; all get the same bits.
    fn sum(&self, values: Vec<f32>) -> Receiver<Vec<f32>>;

    /// What every rank gives, in the order of ranks.
    fn gather(&self, text: Vec<u8>) -> Receiver<Vec<Vec<u8>>>;

    /// Waits until every rank is here, and leaves. Nothing can be asked for afterwards.
    fn leave(&self);

    /// Ends the processes of all ranks, this one too.
    fn abort(&self);
}
