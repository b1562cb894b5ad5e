//! `sq-llava bench --quality`: what quantisation costs, on a text.

use std::path::Path;

use anyhow::{Result, bail};
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use serde::Serialize;
use sq_llava_model::Assistant;
use sq_llava_model::weights::Narrow;

use crate::model::ModelArguments;

/// Tokens that are read together.
const WINDOW: usize = 512;
/// Most windows of a text.
const WINDOWS: usize = 8;

/// What a model makes of a text.
struct Reading {
    /// Sum of −log p of each next token.
    loss: f64,
    /// The likeliest next token at each place.
    choices: Vec<i64>,
}

/// The comparison.
#[derive(Debug, Serialize)]
struct Quality {
    tokens: usize,
    perplexity_dense: f64,
    perplexity: f64,
    /// Share of places where both find the same token likeliest.
    agreement: f64,
}

/// Reads a text with the model as it is asked for and with dense weights, and prints both.
///
/// # Errors
/// If a model or the text cannot be read.
pub fn compare<B: Backend>(
    model: &ModelArguments,
    text: &Path,
    json: bool,
    device: &B::Device,
) -> Result<()> {
    let Some(wanted) = model.blocks()? else {
        bail!("--quality compares --quantize q8, q4 or stored with dense weights: give it");
    };
    let content = sq_llava_data::files::read_to_string(text)?;
    let (dense, tokens) = read::<B>(
        &model.load_as::<B>(None, Narrow::Fastest, device)?.0,
        &content,
        device,
    )?;
    let (found, _) = read::<B>(
        &model.load_as::<B>(Some(wanted), Narrow::Fastest, device)?.0,
        &content,
        device,
    )?;
    let same = dense.choices.iter().zip(&found.choices);
    let same = same.filter(|(a, b)| a == b).count();
    let quality = Quality {
        tokens,
        perplexity_dense: (dense.loss / tokens as f64).exp(),
        perplexity: (found.loss / tokens as f64).exp(),
        agreement: same as f64 / tokens as f64,
    };
    if json {
        println!("{}", serde_json::to_string(&quality)?);
        return Ok(());
    }
    println!(
        "perplexity on {tokens} tokens: {:.4} dense, {:.4} quantised ({:+.2} %); same greedy token at {:.2} %",
        quality.perplexity_dense,
        quality.perplexity,
        100.0 * (quality.perplexity / quality.perplexity_dense - 1.0),
        100.0 * quality.agreement
    );
    Ok(())
}

fn read<B: Backend>(
    assistant: &Assistant<B>,
    text: &str,
    device: &B::Device,
) -> Result<(Reading, usize)> {
    let ids = assistant.tokenizer.encode(text, true)?;
    let llama = &assistant.model.language_model;
    let mut reading = Reading {
        loss: 0.0,
        choices: vec![],
    };
    for window in ids.chunks(WINDOW + 1).take(WINDOWS) {
        let Some((_, next)) = window.split_first() else {
            continue;
        };
        if next.is_empty() {
            continue;
        }
        let input = &window[..next.len()];
        let input = Tensor::<B, 1, Int>::from_data(input, device);
        let hidden = llama.embed(input).unsqueeze();
        let hidden = llama.forward_layers(hidden, &[0], None);
        let scores = log_softmax(llama.logits(hidden.squeeze_dim(0)), 1);
        let target = Tensor::<B, 1, Int>::from_data(next, device).unsqueeze_dim(1);
        let chosen = scores.clone().gather(1, target).into_data();
        reading.loss -= chosen.iter::<f64>().sum::<f64>();
        reading
            .choices
            .extend(scores.argmax(1).into_data().iter::<i64>());
    }
    let tokens = reading.choices.len();
    if tokens == 0 {
        bail!("the text has no two tokens");
    }
    Ok((reading, tokens))
}
