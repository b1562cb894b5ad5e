//! The language model: reading comprehension without pictures. A text says in keywords what a
//! scene holds, then come questions and answers in the layout of a chat (template `v1`).

use anyhow::{Result, ensure};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use sq_llava_data::{
    Author, LabelOptions, LlavaSample, Message, Template, TextTokenizer, TokenRole, encode_sample,
};
use sq_llava_model::SqLlava;
use sq_llava_model::config::{LlamaConfig, ProjectorConfig, SqLlavaConfig};
use sq_llava_model::cross_entropy::token_losses;
use sq_llava_model::llama::Llama;

use super::{Lessons, rate};
use crate::world::{DESCRIBE, Kind, MOST_THINGS, Scene, rng};

/// Peak learning rate.
const RATE: f64 = 2e-3;

/// Texts of one step.
const BATCH: usize = 16;

/// Weight in the loss of words that only the picture could tell, and of questions.
const GIVEN: f32 = 0.1;

/// Questions about one scene.
const QUESTIONS: usize = 5;

/// About 0.6 million parameters.
pub fn config(vocabulary: usize) -> SqLlavaConfig {
    let llama = LlamaConfig::new()
        .with_hidden_size(128)
        .with_intermediate_size(344)
        .with_num_hidden_layers(3)
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

/// A text with the weight that each token has in the loss.
struct Lesson {
    ids: Vec<i64>,
    weights: Vec<f32>,
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
    let config = config(tokenizer.len());
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
    let mut llama = model.language_model.clone();
    for step in 0..lessons.language_steps {
        let texts = (0..BATCH)
            .map(|i| {
                let number = (step * BATCH + i) as u64;
                lesson(tokenizer, most_things(step, lessons), lessons.seed, number)
            })
            .collect::<Result<Vec<_>>>()?;
        let loss = loss(&llama, &texts, device);
        let value = loss.clone().into_scalar();
        let value: f64 = burn::tensor::ElementConversion::elem(value);
        ensure!(
            value.is_finite(),
            "language model, step {step}: the loss is {value}"
        );
        let grads = GradientsParams::from_grads(loss.backward(), &llama);
        llama = optimizer.step(rate(RATE, step, lessons.language_steps), llama, grads);
        if step % 50 == 49 || step + 1 == lessons.language_steps {
            say(format!(
                "language model, step {}: loss {value:.4}",
                step + 1
            ));
        }
    }
    model.language_model = llama;
    Ok(burn::module::AutodiffModule::valid(&model))
}

/// Weighted cross-entropy of the next token.
fn loss<B: AutodiffBackend>(
    llama: &Llama<B>,
    texts: &[Lesson],
    device: &B::Device,
) -> Tensor<B, 1> {
    let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
    let mut ids = Vec::with_capacity(texts.len() * longest);
    let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (index, text) in texts.iter().enumerate() {
        for place in 1..text.ids.len() {
            rows.push((index * longest + place - 1) as i64);
            targets.push(text.ids[place]);
            weights.push(text.weights[place]);
        }
        ids.extend(&text.ids);
        ids.resize((index + 1) * longest, 0);
    }
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::from(&ids[..]), device);
    let embedded = llama.embed(ids);
    let width = embedded.dims()[1];
    let hidden = embedded.reshape([texts.len(), longest, width]);
    // Padding is at the right: no token that counts sees it.
    let hidden = llama.forward_layers(hidden, &vec![0; texts.len()], None);
    let index = Tensor::<B, 1, Int>::from_data(TensorData::from(&rows[..]), device);
    let hidden = hidden
        .reshape([texts.len() * longest, width])
        .select(0, index);
    let total: f32 = weights.iter().sum();
    let weights = Tensor::<B, 1>::from_data(TensorData::from(&weights[..]), device);
    (token_losses(llama.logits(hidden), &targets) * weights).sum() / total
}

/// Scenes grow over the first two fifths of the lessons: to find the one thing there is comes
/// before finding the right one.
fn most_things(step: usize, lessons: Lessons) -> usize {
    let growth = (lessons.language_steps * 2 / 5).max(1);
    (1 + step * MOST_THINGS / growth).min(MOST_THINGS)
}

/// The text of a number, about a scene of at most so many things.
fn lesson(tokenizer: &TextTokenizer, most: usize, seed: u64, number: u64) -> Result<Lesson> {
    let mut rng = rng(seed, 4, number);
    let count = rng.random_range(1..=most);
    let scene = Scene::with_things(count, &mut rng);
    if rng.random_range(0..4) == 0 {
        return retold(tokenizer, &scene, &mut rng);
    }
    let mut messages = Vec::new();
    for turn in 0..QUESTIONS {
        let (mut question, answer) = if turn == 0 && rng.random_range(0..3) == 0 {
            (DESCRIBE.to_owned(), scene.caption())
        } else {
            // The kinds are never empty.
            let kind = Kind::ALL.choose(&mut rng).copied().unwrap_or(Kind::YesNo);
            let one = scene.ask(kind, &mut rng);
            (one.question, one.answer)
        };
        if turn == 0 {
            question = format!("{}\n{question}", scene.notes(&mut rng));
        }
        for (from, value) in [(Author::Human, question), (Author::Gpt, answer)] {
            messages.push(Message { from, value });
        }
    }
    let sample = LlavaSample {
        id: number.to_string(),
        images: vec![],
        conversations: messages,
    };
    let encoded = encode_sample(tokenizer, &sample, &[], &LabelOptions::new(Template::V1))?;
    let weight = |role: &TokenRole| match role {
        TokenRole::Answer => 1.0,
        TokenRole::Question | TokenRole::Ignore => GIVEN,
    };
    Ok(Lesson {
        weights: encoded.roles.iter().map(weight).collect(),
        ids: encoded.input_ids,
    })
}

/// Keywords, then the sentence that says the same.
fn retold(tokenizer: &TextTokenizer, scene: &Scene, rng: &mut ChaCha8Rng) -> Result<Lesson> {
    let mut ids = tokenizer.encode(&format!("{}\n", scene.notes(rng)), true)?;
    let given = ids.len();
    ids.extend(tokenizer.encode(&format!("{}\n", scene.caption()), false)?);
    let weights = (0..ids.len()).map(|i| if i < given { GIVEN } else { 1.0 });
    Ok(Lesson {
        weights: weights.collect(),
        ids,
    })
}
