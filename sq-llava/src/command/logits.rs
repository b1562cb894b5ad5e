//! `sq-llava logits`: what the model computes for token ids, to compare with other implementations.

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use clap::Args;
use serde_json::{Value, json};
use sq_llava_model::Sample;
use sq_llava_model::ops::finite::is_finite;

use crate::device::Work;
use crate::model::ModelArguments;

/// Print the logits of token ids as JSON, with everything before them, to compare with other
/// implementations.
#[derive(Debug, Args)]
pub struct Logits {
    #[command(flatten)]
    model: ModelArguments,
    /// Token ids; -200 where the picture stands.
    #[arg(
        long,
        value_delimiter = ',',
        required = true,
        allow_negative_numbers = true
    )]
    ids: Vec<i64>,
    /// A picture.
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,
}

impl Logits {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.model.device.run(self)
    }
}

impl Work for Logits {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        let (assistant, _) = self.model.load::<B>(device)?;
        let model = &assistant.model;
        let mut out = json!({ "ids": self.ids });
        let mut images = vec![];
        if let Some(path) = &self.image {
            let image = assistant.open_image(path)?;
            let pixels = model.prepared_pixels(&[&image])?;
            if let Some(origin) = model.image_origin(pixels.clone())? {
                return Err(model.not_finite(0, origin).into());
            }
            let features = model.vision_features(pixels.clone())?;
            let projected = model.project(features.clone());
            out["pixel_values"] = values(pixels)?;
            out["vision_features"] = values(features)?;
            let tokens = model.pack(projected, &image.packing)?;
            out["image_tokens"] = values(tokens.clone().unsqueeze::<3>())?;
            images.push(tokens);
        }
        let ids = &self.ids;
        let mut embedded = model.embed(&[Sample { ids, images }])?;
        let Some(embedded) = embedded.pop() else {
            bail!("--ids is empty");
        };
        let logits = model.logits(embedded.clone());
        if !is_finite(&logits) {
            return Err(model.not_finite_text(embedded).into());
        }
        out["logits"] = values(logits)?;
        println!("{out}");
        Ok(())
    }
}

/// Shape and values, row-major.
fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Value> {
    let shape = tensor.dims();
    let values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
    Ok(json!({ "shape": shape.to_vec(), "values": values }))
}
