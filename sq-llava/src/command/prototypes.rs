//! `sq-llava prototypes`: whether prototypes are regions of pictures.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use serde::Serialize;
use sq_llava_data::DataSet;
use sq_llava_data::masks::MaskFolder;
use sq_llava_eval::prototypes::Agreement;
use sq_llava_model::Assistant;

use crate::device::Work;
use crate::model::ModelArguments;
use crate::output::tell;
use crate::prototypes::Tokens;

/// Compare the prototypes of pictures with masks: each token's first prototype with the mask that its
/// patch belongs to.
#[derive(Debug, Args)]
pub struct Prototypes {
    #[command(flatten)]
    model: ModelArguments,
    /// Data that names the pictures (LLaVA JSON or JSONL, Parquet, tar); each counts once.
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// Folder of the pictures.
    #[arg(long, value_name = "DIR", default_value = "")]
    images: PathBuf,
    /// Folder of their masks, as model.masks.folder of a training.
    #[arg(long, value_name = "DIR")]
    masks: PathBuf,
    /// At most so many pictures with masks, the first ones.
    #[arg(long, value_name = "N", default_value_t = 500)]
    limit: usize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    /// Pictures with a token that belongs to a mask.
    pictures: usize,
    #[serde(flatten)]
    mean: Agreement,
}

impl Prototypes {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.model.device.run(self)
    }

    /// The agreement of each picture with masks.
    fn measure<B: Backend>(&self, assistant: &Assistant<B>) -> Result<Vec<Agreement>> {
        let masks = MaskFolder::open(&self.masks)?;
        let data = DataSet::open_one(&self.data, &self.images)?;
        let Some(processor) = &assistant.processor else {
            bail!("the model has no vision tower");
        };
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        for index in 0..data.len() {
            if found.len() == self.limit {
                break;
            }
            let sample = data.get(index)?;
            for (place, name) in sample.images.iter().enumerate() {
                if found.len() == self.limit || !seen.insert(data.picture_key(index, place, name)) {
                    continue;
                }
                let Some(path) = masks.find(name)? else {
                    continue;
                };
                let picture = data.picture(index, place, name)?;
                let image = picture.open(processor)?;
                let tokens = Tokens::of(assistant, &image, &path);
                found.extend(tokens.with_context(|| picture.name())?.agreement());
            }
        }
        Ok(found)
    }
}

impl Work for Prototypes {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let (assistant, _) = self.model.load::<B>(device)?;
        let all = self.measure(&assistant)?;
        let Some(mean) = Agreement::mean(&all) else {
            bail!(
                "{}: no picture of {} has a patch that a mask covers more than half of",
                self.masks.display(),
                self.data.display()
            );
        };
        let found = Found {
            pictures: all.len(),
            mean,
        };
        if self.json {
            tell(serde_json::to_string_pretty(&found)?);
            return Ok(());
        }
        let nmi = mean.nmi.map_or("-".into(), |nmi| format!("{nmi:.3}"));
        tell(format_args!("pictures with masks: {}", found.pictures));
        tell(format_args!(
            "purity {:.3} (tokens of the most frequent mask of their prototype), inverse purity {:.3} \
             (tokens with the most frequent prototype of their mask), mutual information {nmi}",
            mean.purity, mean.inverse_purity
        ));
        Ok(())
    }
}
