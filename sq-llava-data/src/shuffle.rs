//! The turns of a conversation in another order in each epoch.
//!
//! Where later questions stand on their own, a model that always sees them after the same turns
//! learns to answer from those turns instead of from the picture.

use crate::manifest::{Author, LlavaSample};
use crate::mix::{fnv1a, splitmix64};

/// Puts the question-and-answer pairs of a sample in an order that is a pure function of
/// (seed, epoch, sample id).
///
/// A sample with several images keeps its order, for their marks stand in its turns; so does one
/// whose messages are not questions and answers by turns.
pub fn shuffle_turns(sample: &mut LlavaSample, seed: u64, epoch: u64) {
    let messages = &mut sample.conversations;
    let pairs = messages.len() / 2;
    let by_turns = messages
        .chunks(2)
        .all(|pair| matches!(pair, [q, a] if q.from != Author::Gpt && a.from == Author::Gpt));
    if sample.images.len() > 1 || pairs < 2 || !by_turns {
        return;
    }
    let mut state = splitmix64(fnv1a(sample.id.as_bytes()) ^ splitmix64(seed ^ splitmix64(epoch)));
    // Fisher–Yates; the bias of the remainder is below 2⁻⁵⁰ for any real conversation.
    for last in (1..pairs).rev() {
        state = splitmix64(state);
        let chosen = (state % (last as u64 + 1)) as usize;
        messages.swap(2 * last, 2 * chosen);
        messages.swap(2 * last + 1, 2 * chosen + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Message;
    use std::collections::HashSet;

    fn sample(id: &str, images: usize, turns: usize) -> LlavaSample {
        let message = |i: usize| Message {
            from: [Author::Human, Author::Gpt][i % 2],
            value: format!("{}{}", ["q", "a"][i % 2], i / 2),
        };
        LlavaSample {
            id: id.into(),
            images: vec!["x.png".into(); images],
            system: None,
            conversations: (0..2 * turns).map(message).collect(),
        }
    }

    fn order(sample: &LlavaSample) -> Vec<&str> {
        let questions = sample.conversations.iter().step_by(2);
        questions.map(|m| m.value.as_str()).collect()
    }

    #[test]
    fn answers_stay_with_their_questions_and_every_turn_comes_first_at_times() {
        let mut first = HashSet::new();
        for epoch in 0..64 {
            let mut shuffled = sample("s", 1, 4);
            shuffle_turns(&mut shuffled, 7, epoch);
            let mut again = sample("s", 1, 4);
            shuffle_turns(&mut again, 7, epoch);
            assert_eq!(order(&shuffled), order(&again));
            for pair in shuffled.conversations.chunks(2) {
                assert_eq!(pair[0].value[1..], pair[1].value[1..]);
            }
            let all: HashSet<&str> = order(&shuffled).into_iter().collect();
            assert_eq!(all.len(), 4);
            first.insert(order(&shuffled)[0].to_owned());
        }
        assert_eq!(first.len(), 4);
    }

    #[test]
    fn samples_seeds_and_epochs_differ() {
        let shuffled = |id: &str, seed, epoch| {
            let mut sample = sample(id, 1, 8);
            shuffle_turns(&mut sample, seed, epoch);
            order(&sample).concat()
        };
        let orders = [
            shuffled("a", 0, 0),
            shuffled("b", 0, 0),
            shuffled("a", 1, 0),
            shuffled("a", 0, 1),
        ];
        assert_eq!(orders.iter().collect::<HashSet<_>>().len(), 4);
    }

    #[test]
    fn what_hangs_together_keeps_its_order() {
        for mut kept in [sample("s", 2, 8), sample("s", 1, 1), {
            let mut open = sample("s", 1, 8);
            open.conversations.pop();
            open
        }] {
            let before = order(&kept).concat();
            for epoch in 0..8 {
                shuffle_turns(&mut kept, 3, epoch);
            }
            assert_eq!(order(&kept).concat(), before);
        }
    }
}
