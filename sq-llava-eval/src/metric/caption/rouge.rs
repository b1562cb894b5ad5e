//! ROUGE-L of captions (Lin, 2004): the longest common subsequence, with the COCO toolkit's
//! weight of recall.

use super::Scored;

/// Weight of recall against precision.
const BETA: f64 = 1.2;

/// ROUGE-L of a corpus.
#[derive(Debug, Clone, PartialEq)]
pub struct Rouge {
    /// Mean over captions.
    pub score: f64,
    /// Of each caption.
    pub each: Vec<f64>,
}

/// ROUGE-L of captions: for each the best precision and the best recall over its references.
pub fn rouge_l(scored: &[Scored]) -> Rouge {
    let each: Vec<f64> = scored.iter().map(one).collect();
    let score = each.iter().sum::<f64>() / each.len().max(1) as f64;
    Rouge { score, each }
}

fn one(scored: &Scored) -> f64 {
    // The toolkit splits at single spaces, so that a caption without words has one empty word.
    let candidate: Vec<&str> = scored.candidate.split(' ').collect();
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for reference in &scored.references {
        let reference: Vec<&str> = reference.split(' ').collect();
        let common = common_subsequence(&candidate, &reference) as f64;
        precision = precision.max(common / candidate.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    let weight = BETA * BETA;
    (1.0 + weight) * precision * recall / (recall + weight * precision)
}

/// Length of the longest common subsequence.
fn common_subsequence(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (column, other) in b.iter().enumerate() {
            let above = row[column + 1];
            row[column + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[column])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsequences_may_have_gaps() {
        let words = |text: &'static str| text.split(' ').collect::<Vec<_>>();
        let length = |a, b| common_subsequence(&words(a), &words(b));
        assert_eq!(length("a b c d", "x a c y d"), 3);
        assert_eq!(length("a b", "c d"), 0);
        assert_eq!(length("a a a", "a a"), 2);
    }
}
