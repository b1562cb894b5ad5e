//! Which entries of a file a study looks at, and a bar that counts them.

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::seq::SliceRandom;

/// A seeded draw.
#[derive(Debug, Clone, Args)]
pub struct DrawArguments {
    /// Look at so many entries only, drawn at random.
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Seed of the draw.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl DrawArguments {
    /// Indices below `len`, in order.
    pub fn indices(&self, len: usize) -> Vec<usize> {
        let mut indices = self.shuffled(len);
        indices.truncate(self.samples.unwrap_or(len));
        indices.sort_unstable();
        indices
    }

    /// All indices below `len` in a random order that the seed decides.
    pub fn shuffled(&self, len: usize) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..len).collect();
        indices.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(self.seed));
        indices
    }
}

/// A bar on standard error; nothing off a terminal.
pub fn count_bar(what: &'static str, len: usize) -> ProgressBar {
    let bar = ProgressBar::new(len as u64);
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {per_sec} {eta}");
    let bar = match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    };
    bar.with_prefix(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_the_seed_alone() {
        let draw = |seed, samples| DrawArguments { samples, seed }.indices(100);
        assert_eq!(draw(1, Some(5)), draw(1, Some(5)));
        assert_ne!(draw(1, Some(5)), draw(2, Some(5)));
        assert_eq!(draw(1, None), (0..100).collect::<Vec<_>>());
        assert_eq!(draw(1, Some(500)).len(), 100);
    }
}
