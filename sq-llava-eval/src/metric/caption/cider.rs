//! CIDEr (Vedantam et al., 2015): agreement of TF-IDF weighted word sequences with all references.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Scored;
use super::ngrams::{MAX_N, count};

/// Width of CIDEr-D's penalty on lengths, in words.
const SIGMA: f64 = 6.0;

/// Which CIDEr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CiderForm {
    /// CIDEr-D: counts clipped to the reference's, and a penalty on other lengths. The COCO
    /// toolkit, and with it every paper, calls this CIDEr.
    D,
    /// The first form: plain cosines.
    Plain,
}

/// CIDEr of a corpus.
#[derive(Debug, Clone, PartialEq)]
pub struct Cider {
    /// Mean over captions; about 1 for good ones, at most 10.
    pub score: f64,
    /// Of each caption.
    pub each: Vec<f64>,
}

/// TF-IDF weights of a text.
struct Vector<'a> {
    weights: BTreeMap<Vec<&'a str>, f64>,
    norms: [f64; MAX_N],
    /// As the toolkit has it: the number of word pairs.
    length: usize,
}

/// CIDEr of captions. Sequences are weighted by how many pictures have them in a reference.
pub fn cider(scored: &[Scored], form: CiderForm) -> Cider {
    let mut documents: HashMap<Vec<&str>, usize> = HashMap::new();
    for one in scored {
        let grams: HashSet<Vec<&str>> = one
            .references
            .iter()
            .flat_map(|reference| count(reference).1.into_keys())
            .collect();
        for gram in grams {
            *documents.entry(gram).or_default() += 1;
        }
    }
    let log_pictures = (scored.len().max(1) as f64).ln();
    let vector = |text| Vector::new(text, &documents, log_pictures);
    let each: Vec<f64> = scored
        .iter()
        .map(|one| {
            let candidate = vector(&one.candidate);
            let references = one.references.iter();
            let sum: f64 = references
                .map(|reference| candidate.similarity(&vector(reference), form))
                .sum();
            10.0 * sum / one.references.len().max(1) as f64
        })
        .collect();
    let score = each.iter().sum::<f64>() / each.len().max(1) as f64;
    Cider { score, each }
}

impl<'a> Vector<'a> {
    fn new(text: &'a str, documents: &HashMap<Vec<&str>, usize>, log_pictures: f64) -> Self {
        let (words, counts) = count(text);
        let mut norms = [0.0; MAX_N];
        let weights = counts
            .into_iter()
            .map(|(gram, n)| {
                let known = documents.get(&gram).copied().unwrap_or(0).max(1);
                let weight = n as f64 * (log_pictures - (known as f64).ln());
                norms[gram.len() - 1] += weight * weight;
                (gram, weight)
            })
            .collect();
        Self {
            weights,
            norms: norms.map(f64::sqrt),
            length: words.saturating_sub(1),
        }
    }

    /// Mean over the lengths of sequences.
    fn similarity(&self, reference: &Self, form: CiderForm) -> f64 {
        let mut products = [0.0; MAX_N];
        for (gram, weight) in &self.weights {
            let known = reference.weights.get(gram).copied().unwrap_or(0.0);
            let ours = match form {
                CiderForm::D => weight.min(known),
                CiderForm::Plain => *weight,
            };
            products[gram.len() - 1] += ours * known;
        }
        let norms = self.norms.iter().zip(&reference.norms);
        let cosines = products.iter().zip(norms).map(|(product, (a, b))| {
            if *a == 0.0 || *b == 0.0 {
                *product
            } else {
                product / (a * b)
            }
        });
        let delta = self.length as f64 - reference.length as f64;
        let penalty = match form {
            CiderForm::D => (-delta * delta / (2.0 * SIGMA * SIGMA)).exp(),
            CiderForm::Plain => 1.0,
        };
        penalty * cosines.sum::<f64>() / MAX_N as f64
    }
}
