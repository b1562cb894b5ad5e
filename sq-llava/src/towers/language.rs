//! The language model: reading comprehension without pictures. A table says in keywords what a
//! scene holds, then come questions and answers. Each phrase of the table is read in one place, the
//! sum of its words' embeddings, where a picture would stand in the same prompt: a patch will take
//! one place too.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::{AutodiffModule, Module};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{ElementConversion, Int, Tensor, TensorData};
use sq_llava_data::TextTokenizer;
use sq_llava_model::SqLlava;
use sq_llava_model::config::{LlamaConfig, ProjectorConfig, SqLlavaConfig};
use sq_llava_model::language::llama::Llama;
use sq_llava_model::ops::cross_entropy::token_losses;
use sq_llava_model::ops::weight::Weight;

use super::course::{EXAM, Lesson, RECITAL, course};
use super::{Lessons, rate};
use crate::world::rng;

/// Peak learning rate.
const RATE: f64 = 1.5e-3;

/// How much further apart the words begin than [`LlamaConfig::init`] draws them.
const WIDEN: f64 = 50.0;

/// The same for the linears: what leaves one is as large as what enters it (LeCun's draw, a
/// variance of 1/in), which PyTorch's is not (1/3 in). Without it no word of a question is looked
/// up in the table.
const WIDEN_LINEARS: f64 = 1.732_050_8;

/// Texts of an examination that are read together.
const BATCH: usize = 16;

/// Random numbers of lessons and of examinations.
const LESSON_STREAM: u64 = 4;
const EXAM_STREAM: u64 = 5;

/// About 0.8 million parameters.
pub fn config(vocabulary: usize) -> SqLlavaConfig {
    let llama = LlamaConfig::new()
        .with_hidden_size(128)
        .with_intermediate_size(344)
        .with_num_hidden_layers(4)
        .with_num_attention_heads(4)
        .with_num_key_value_heads(4)
        .with_vocab_size(vocabulary)
        .with_max_position_embeddings(512)
        .with_rms_norm_eps(1e-5)
        .with_tie_word_embeddings(true);
    SqLlavaConfig::new(llama)
        .with_projector(ProjectorConfig::Identity)
        .with_bos_token_id(Some(1))
        .with_eos_token_ids(vec![2])
}

/// Trains a language model from nothing.
///
/// # Errors
/// If the loss is no longer a number.
pub fn train<B: AutodiffBackend>(
    tokenizer: &TextTokenizer,
    lessons: Lessons,
    device: &B::Device,
    say: &mut dyn FnMut(String),
) -> Result<SqLlava<B::InnerBackend>> {
    B::seed(device, lessons.seed);
    let config = config(usize::try_from(tokenizer.id_end())?);
    let mut model: SqLlava<B> = config.init(device)?;
    say(format!(
        "language model: {} parameters, {} steps",
        model.num_params(),
        lessons.language_steps
    ));
    let mut optimizer = AdamWConfig::new()
        .with_weight_decay(0.01)
        .with_epsilon(1e-8)
        .with_beta_2(0.98)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init::<B, Llama<B>>();
    let mut llama = widened(model.language_model.clone());
    for step in 0..lessons.language_steps {
        let mut rng = rng(lessons.seed, LESSON_STREAM, step as u64);
        let texts = course(step, lessons.language_steps).read(tokenizer, &mut rng)?;
        let loss = loss(&llama, &texts, device);
        let value: f64 = loss.clone().into_scalar().elem();
        ensure!(
            value.is_finite(),
            "language model, step {step}: the loss is {value}"
        );
        let grads = GradientsParams::from_grads(loss.backward(), &llama);
        llama = optimizer.step(rate(RATE, step, lessons.language_steps), llama, grads);
        if step % 100 == 99 || step + 1 == lessons.language_steps {
            let right = examine(&llama.valid(), tokenizer, lessons.seed, device)?;
            let right: Vec<String> = right
                .into_iter()
                .map(|(kind, part)| format!("{kind} {:.1}", 100.0 * part))
                .collect();
            say(format!(
                "language model, step {}: loss {value:.4}; answers to new texts right, in %: {}",
                step + 1,
                right.join(", ")
            ));
        }
    }
    model.language_model = llama;
    Ok(model.valid())
}

/// A decoder that has just been drawn, its draws widened.
fn widened<B: AutodiffBackend>(mut llama: Llama<B>) -> Llama<B> {
    // LLaMA's draw of 0.02 is for wide models: here the first layer would drown out the words.
    let table = &mut llama.model.embed_tokens.weight;
    *table = times(table.clone(), WIDEN);
    for (_, linear) in llama.linears_mut() {
        linear.weight = times(linear.weight.clone(), WIDEN_LINEARS);
    }
    llama
}

/// A product that still learns: one that autodiff had recorded would be no parameter any more.
fn times<B: AutodiffBackend>(weight: Weight<B>, factor: f64) -> Weight<B> {
    weight.map(|drawn| Tensor::from_inner(drawn.inner() * factor).require_grad())
}

/// Weighted cross-entropy of the next token.
fn loss<B: Backend>(llama: &Llama<B>, texts: &[Lesson], device: &B::Device) -> Tensor<B, 1> {
    let longest = longest(texts);
    let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (index, text) in texts.iter().enumerate() {
        for place in 1..text.places.len() {
            if text.weights[place] > 0.0 {
                rows.push((index * longest + place - 1) as i64);
                targets.push(text.places[place][0]);
                weights.push(text.weights[place]);
            }
        }
    }
    let total: f32 = weights.iter().sum();
    let weights = Tensor::<B, 1>::from_data(TensorData::from(&weights[..]), device);
    let logits = predict(llama, texts, &rows, device);
    (token_losses(logits, &targets) * weights).sum() / total
}

/// Part of the answers, by kind, whose tokens are all the most likely ones, in texts that no
/// lesson has.
fn examine<B: Backend>(
    llama: &Llama<B>,
    tokenizer: &TextTokenizer,
    seed: u64,
    device: &B::Device,
) -> Result<BTreeMap<&'static str, f64>> {
    let texts = EXAM.read(tokenizer, &mut rng(seed, EXAM_STREAM, 0))?;
    let mut counts: BTreeMap<&'static str, [usize; 2]> = BTreeMap::new();
    for texts in texts.chunks(BATCH) {
        let longest = longest(texts);
        let answers = texts.iter().enumerate().flat_map(|(index, text)| {
            let own = text.answers.iter();
            own.filter(|(kind, ..)| *kind != RECITAL)
                .map(move |&(kind, start, end)| (kind, index, start, end))
        });
        let answers: Vec<_> = answers.collect();
        let mut rows = Vec::new();
        for &(_, index, start, end) in &answers {
            rows.extend((start..end).map(|place| (index * longest + place - 1) as i64));
        }
        let likely = predict(llama, texts, &rows, device).argmax(1);
        let mut likely = likely
            .into_data()
            .iter::<i64>()
            .collect::<Vec<_>>()
            .into_iter();
        for (kind, index, start, end) in answers {
            let due = texts[index].places[start..end].iter().map(|words| words[0]);
            let said: Vec<i64> = likely.by_ref().take(end - start).collect();
            let count = counts.entry(kind).or_default();
            count[0] += usize::from(due.eq(said));
            count[1] += 1;
        }
    }
    let part = |[right, all]: [usize; 2]| right as f64 / all.max(1) as f64;
    Ok(counts
        .into_iter()
        .map(|(kind, count)| (kind, part(count)))
        .collect())
}

fn longest(texts: &[Lesson]) -> usize {
    texts
        .iter()
        .map(|text| text.places.len())
        .max()
        .unwrap_or(0)
}

/// Logits of the token after each of the rows, which count the places of all texts, each filled up
/// to the longest. `[rows, vocabulary]`
fn predict<B: Backend>(
    llama: &Llama<B>,
    texts: &[Lesson],
    rows: &[i64],
    device: &B::Device,
) -> Tensor<B, 2> {
    let longest = longest(texts);
    let table = llama.model.embed_tokens.weight.val();
    let [vocabulary, width] = table.dims();
    // How often a place has each word: its product with the table is the sum of their embeddings.
    let mut words = vec![0.0f32; texts.len() * longest * vocabulary];
    for (index, text) in texts.iter().enumerate() {
        for (place, ids) in text.places.iter().enumerate() {
            for &id in ids {
                words[(index * longest + place) * vocabulary + id as usize] += 1.0;
            }
        }
    }
    let words = TensorData::new(words, [texts.len() * longest, vocabulary]);
    let hidden = Tensor::<B, 2>::from_data(words, device).matmul(table);
    let hidden = hidden.reshape([texts.len(), longest, width]);
    // Padding is at the right: no token that counts sees it.
    let hidden = llama.forward_layers(hidden, &vec![0; texts.len()], None);
    let index = Tensor::<B, 1, Int>::from_data(TensorData::from(rows), device);
    let hidden = hidden.reshape([texts.len() * longest, width]);
    llama.logits(hidden.select(0, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "cpu")]
    #[test]
    fn every_parameter_of_a_widened_decoder_learns() {
        use burn::module::{ModuleVisitor, Param};

        type B = burn::backend::Autodiff<burn_flex::Flex>;

        struct Unlearnt<'a>(&'a GradientsParams, usize);
        impl ModuleVisitor<B> for Unlearnt<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
                let grad = self.0.get::<burn_flex::Flex, D>(param.id);
                let size = grad.map_or(0.0, |grad| grad.abs().sum().into_scalar());
                self.1 += usize::from(size == 0.0);
            }
        }

        let dir = tempfile::tempdir().unwrap();
        super::super::tokenizer::write(dir.path()).unwrap();
        let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
        let device = Default::default();
        let config = config(usize::try_from(tokenizer.id_end()).unwrap());
        let drawn = config.init::<B>(&device).unwrap().language_model;
        let spread = |llama: &Llama<B>| {
            let table = llama.model.embed_tokens.weight.val();
            let first = llama.linears().next().unwrap().1.weight.val();
            [table.var(1).mean(), first.var(1).mean()].map(|var| var.into_scalar())
        };
        let before = spread(&drawn);
        let llama = widened(drawn);
        let factors = [WIDEN, WIDEN_LINEARS].map(|factor| (factor * factor) as f32);
        for ((after, before), factor) in spread(&llama).iter().zip(before).zip(factors) {
            assert!((after / before / factor - 1.0).abs() < 1e-3);
        }
        let texts = EXAM.read(&tokenizer, &mut rng(0, LESSON_STREAM, 0));
        let texts = &texts.unwrap()[..2];
        let grads = loss(&llama, texts, &device).backward();
        let grads = GradientsParams::from_grads(grads, &llama);
        let mut unlearnt = Unlearnt(&grads, 0);
        llama.visit(&mut unlearnt);
        assert_eq!(unlearnt.1, 0);
    }
}
