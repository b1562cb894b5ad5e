//! How much the later stages of a run have to do, against the one at hand.

use sq_llava_data::{DataSet, Draw, IMAGE_TOKEN, Sampler};
use sq_llava_model::SqLlavaConfig;

use crate::data::loader::Plan;
use crate::recipe::Recipe;
use crate::run::validation::StageSplit;
use crate::step::work::{SampleSize, sample_work};

/// Samples that a stage's size is estimated from.
const LOOKED_AT: usize = 256;
/// Bytes of text that make a token, about. It cancels where stages have texts of one language.
const BYTES_A_TOKEN: f64 = 4.0;

/// The data of a stage, as far as its time depends on them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StageSize {
    stage: u8,
    samples: usize,
    text: f64,
    pictures: f64,
}

impl StageSize {
    /// Looks at some samples. What cannot be read is passed over: the loader names it.
    pub fn of(split: &StageSplit) -> Self {
        let draws = Sampler::random(split.training.shares(), 0).in_file_order(0);
        let (text, pictures) = means(&split.training, &draws);
        Self {
            stage: split.stage,
            samples: draws.len(),
            text,
            pictures,
        }
    }

    fn plan(&self, recipe: &Recipe) -> Plan {
        Plan::new(recipe.stage(self.stage), recipe.groups(), self.samples)
    }

    /// Operations of one sample.
    fn sample(&self, config: &SqLlavaConfig, recipe: &Recipe) -> f64 {
        let pictures = self.pictures * config.tokens_per_image() as f64;
        let longest = recipe.stage(self.stage).max_length as f64;
        let size = SampleSize {
            tokens: (self.text / BYTES_A_TOKEN + pictures).min(longest),
            pictures: self.pictures,
        };
        sample_work(config, recipe, self.stage, size)
    }
}

/// The work of the stages behind the first, in its steps; `None` where none follows.
pub(crate) fn later_steps(
    stages: &[StageSize],
    config: &SqLlavaConfig,
    recipe: &Recipe,
) -> Option<f64> {
    let (first, later) = stages.split_first()?;
    if later.is_empty() {
        return None;
    }
    let step = first.sample(config, recipe) * recipe.stage(first.stage).samples_per_step() as f64;
    let work =
        |stage: &StageSize| stage.sample(config, recipe) * stage.plan(recipe).all_samples() as f64;
    Some(later.iter().map(work).sum::<f64>() / step.max(1.0))
}

/// Mean bytes of text and number of pictures, of samples as often as they come.
fn means(data: &DataSet, draws: &[Draw]) -> (f64, f64) {
    let stride = draws.len().div_ceil(LOOKED_AT).max(1);
    let (mut seen, mut text, mut pictures) = (0usize, 0usize, 0usize);
    let draws = draws.iter().step_by(stride);
    for sample in draws.filter_map(|draw| data.get(draw.index).ok()) {
        seen += 1;
        pictures += sample.images.len();
        text += sample
            .conversations
            .iter()
            .map(|message| message.value.replace(IMAGE_TOKEN, "").len())
            .sum::<usize>();
    }
    let seen = seen.max(1) as f64;
    (text as f64 / seen, pictures as f64 / seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Flavour;

    #[test]
    fn a_stage_of_as_many_samples_and_less_to_compute_takes_fewer_steps() {
        let config = SqLlavaConfig::preset("sq-llava-7b").unwrap();
        let recipe = Recipe::published(Flavour::Paper);
        let size = |stage, text| StageSize {
            stage,
            samples: 256 * 100,
            text,
            pictures: 1.0,
        };
        let later = |text| later_steps(&[size(1, 400.0), size(2, text)], &config, &recipe);
        // 100 steps of stage 1's 256 samples, with adapters on top.
        let same = later(400.0).unwrap();
        assert!((100.0..115.0).contains(&same), "{same}");
        // 576 + 100 tokens against 576 + 600.
        let longer = later(2400.0).unwrap();
        assert!((longer / same - 1176.0 / 676.0).abs() < 0.05, "{longer}");
        assert_eq!(later_steps(&[size(2, 400.0)], &config, &recipe), None);
    }
}
