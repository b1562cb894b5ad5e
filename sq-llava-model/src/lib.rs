//! SQ-LLaVA on [Burn](https://burn.dev): the model, LoRA, generation and weights, generic over
//! Burn's backends (`B: Backend`).
//!
//! # What runs where
//!
//! | | CPU ([flex](https://docs.rs/burn-flex)) | CUDA, Vulkan, Metal |
//! |---|---|---|
//! | weights f32, f16, bf16 | our kernels, read as they are stored | Burn's kernels |
//! | weights int8, int4 ([`Quantize`](language::quantize::Quantize)) | products on the blocks, embedding and head too | the linears, to save memory: each product makes its weight dense |
//! | a GGUF file's own blocks (`Quantize::Stored`) | yes | refused |
//! | LoRA beside the weights, merged, taken out again | yes | yes |
//! | gradients through LoRA on dense weights | our kernels | Burn's autodiff |
//! | gradients through LoRA on int8 and int4 (QLoRA) | yes | refused |
//! | one token with a cache of keys and values; batches; common prefixes | yes | yes |
//! | fused attention | our kernel, forward and backward | Burn's flash attention, forward |
//!
//! Layers that are recomputed on the way back, the loss and the optimizer are those of
//! `sq-llava-train`.
//!
//! | format | read | written |
//! |---|---|---|
//! | LLaVA's directories, SQ-LLaVA's and ShareGPT4V's among them | yes | yes ([`Layout::Original`](weights::Layout)) |
//! | llava-hf's directories (LLaVA, LLaVA-NeXT, OneVision), keys of before and after transformers 4.52 | yes | yes ([`Layout::LlavaHf`](weights::Layout)) |
//! | language models of every [`Family`](config::Family), towers of every [`VisionFamily`](config::VisionFamily) | yes | towers ([`save_vision_tower`](weights::save_vision_tower)) |
//! | PEFT's LoRA adapters, run directories | yes, on their base | yes ([`save_adapters`](weights::save_adapters)) |
//! | safetensors, whole or in shards | yes | yes |
//! | PyTorch's `.bin`, `.pt`, `.pth` | yes; nothing inside is executed | |
//! | GGUF of LLaMA's architecture | yes, as the language model | |
//!
//! # Examples
//!
//! A model of random weights, its pictures and its scores:
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flex::Flex;
//! use sq_llava_model::{IMAGE_TOKEN_INDEX, Sample, SqLlava, SqLlavaConfig};
//!
//! let device = Default::default();
//! let config = SqLlavaConfig::preset("tiny").expect("a preset");
//! let model: SqLlava<Flex> = config.init(&device)?;
//!
//! let pixels = Tensor::zeros([1, 3, 56, 56], &device);
//! let images = model.encode_images(pixels)?; // one of [16 tokens, 64]
//! let ids = [1, IMAGE_TOKEN_INDEX, 5, 9];
//! let mut embedded = model.embed(&[Sample { ids: &ids, images }])?;
//! let scores = model.logits(embedded.remove(0));
//! assert_eq!(scores.dims(), [16 + 3, 320]); // a row for each token
//! # Ok::<(), sq_llava_model::ModelError>(())
//! ```
//!
//! A checkpoint, its language model brought to int8 while it loads, and what was done with each key:
//!
//! ```
//! use burn_flex::Flex;
//! use sq_llava_model::language::quantize::Quantize;
//! use sq_llava_model::weights::{LoadOptions, SaveOptions, load_model, save_pretrained};
//! use sq_llava_model::{SqLlava, SqLlavaConfig};
//!
//! let (folder, device) = (tempfile::tempdir()?, Default::default());
//! let config = SqLlavaConfig::preset("tiny").expect("a preset");
//! let model: SqLlava<Flex> = config.init(&device)?;
//! save_pretrained(&model, folder.path(), &SaveOptions::default())?;
//!
//! let options = LoadOptions {
//!     quantize: Some(Quantize::Q8),
//!     ..LoadOptions::default()
//! };
//! let loaded = load_model::<Flex>(folder.path(), &options, &device)?;
//! assert!(loaded.report.is_clean(), "{}", loaded.report);
//! assert_eq!(loaded.report.formats["F16 as q8"], 2 + 3 * 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Adapters, saved as PEFT loads them and put on their base again:
//!
//! ```
//! use burn_flex::Flex;
//! use sq_llava_model::ops::lora::LoraConfig;
//! use sq_llava_model::weights::*;
//! use sq_llava_model::{SqLlava, SqLlavaConfig};
//!
//! let (folder, device) = (tempfile::tempdir()?, Default::default());
//! let (base, run) = (folder.path().join("base"), folder.path().join("run"));
//! let config = SqLlavaConfig::preset("tiny").expect("a preset");
//! let model: SqLlava<Flex> = config.init(&device)?;
//! save_pretrained(&model, &base, &SaveOptions::default())?;
//!
//! let adapted = model.with_llm_lora(&LoraConfig::llm(8, 16.0, 0.05));
//! save_adapters(&adapted, &run, &RunOrigin::default())?;
//! let options = LoadOptions {
//!     base: Some(base),
//!     ..LoadOptions::default()
//! };
//! let loaded = load_model::<Flex>(&run, &options, &device)?;
//! assert_eq!(loaded.model.linears().filter(|(_, l)| l.lora.is_some()).count(), 3 * 7);
//! let whole = loaded.model.merge_lora();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A question about a picture, and the model's own ([`Assistant`], [`SelfQuestioner`]): as in
//! `sq-llava`, which has the same in three lines.

pub mod config;
pub mod connector;
mod error;
pub mod generation;
pub mod kernels;
pub mod language;
pub mod ops;
pub mod origin;
mod part;
mod sq_llava;
pub mod vision;
pub mod weights;

pub use config::SqLlavaConfig;
pub use connector::splice::IMAGE_TOKEN_INDEX;
pub use error::ModelError;
pub use generation::assistant::{Answer, AnswerOptions, Assistant, AssistantOptions, Request};
pub use generation::questioner::{Question, QuestionOptions, Questions, SelfQuestioner};
#[cfg(feature = "cpu")]
pub use kernels::cpu::{peak, processor};
pub use language::vocabulary::check_vocabulary;
pub use part::Part;
pub use sq_llava::{Sample, SqLlava};
