//! Options that name a model, and loading it with a progress bar.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use sq_llava_data::gguf::GgufHeader;
use sq_llava_data::image::{ImageAspect, ImageProcessor, ImageProcessorConfig};
use sq_llava_data::{Layout, Template, TemplateChoice, TextTokenizer};
use sq_llava_eval::clip_score::ClipScorer;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::weights::{GgufType, LoadOptions, LoadReport, Narrow, Progress, init_random};
use sq_llava_model::{Assistant, AssistantOptions, SqLlavaConfig};
use sq_llava_train::report::resident::machine_bytes;

use crate::device::DeviceChoice;
use crate::names;

/// Which model, on which device.
#[derive(Debug, Clone, Args)]
pub struct ModelArguments {
    /// Checkpoint or run directory, a GGUF file, or a name on the Hugging Face hub (org/name,
    /// org/name@revision). So are --base, --vision and --tokenizer.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Model that a run was trained on.
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Vision tower, for checkpoints without one inside.
    #[arg(long, value_name = "DIR")]
    pub vision: Option<PathBuf>,
    /// Vision tower and projector in a GGUF file of llama.cpp, for a --model that is a language
    /// model alone.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vision", "preset"])]
    pub mmproj: Option<PathBuf>,
    /// Tokenizer, for weights that lie without one.
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// `auto`, `cpu`, `cuda[:i]`, `vulkan[:i]`, `metal[:i]` or `webgpu[:i]`.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Dtype of the weights in memory.
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    pub dtype: Precision,
    /// Bring the LLM's weights into blocks: q8 (int8), q4 (int4), or, on the CPU, stored (those of
    /// a GGUF file as they are). Of `export --layout gguf`, the type of the matrices: q8_0, q4_0,
    /// q4_1, q4_k, f16, bf16 or f32.
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<Format>,
    /// Go on although the checkpoint holds weights or settings that this program has no place for.
    #[arg(long)]
    pub allow_unused: bool,
    /// Conversation template: plain, v1, v1_sq, sq, llama_2, or checkpoint for the chat_template
    /// that the checkpoint brings. By default the one that it was trained with, else its own.
    #[arg(long, visible_aliases = ["conv", "chat-template"], value_name = "TEMPLATE")]
    pub template: Option<TemplateChoice>,
    /// Development: sizes of a preset in place of a checkpoint; needs --random-init.
    #[arg(long, hide = true, requires = "random_init", conflicts_with = "model")]
    pub preset: Option<String>,
    /// Development: random weights.
    #[arg(long, hide = true, requires = "preset")]
    pub random_init: bool,
}

/// What `--quantize` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Blocks in memory and in this program's own files.
    Blocks(Quantize),
    /// A type of GGUF files.
    Gguf(GgufType),
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match (name.parse::<Quantize>(), name.parse::<GgufType>()) {
            (Ok(blocks), _) => Ok(Self::Blocks(blocks)),
            (_, Ok(kind)) => Ok(Self::Gguf(kind)),
            (Err(blocks), Err(gguf)) => bail!("{blocks}; of GGUF files: {gguf}"),
        }
    }
}

/// A dtype by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 16 bits for weights of towers and language model that are stored in them (bf16 on processors
    /// that multiply it faster than f32); for others f32 on the CPU while the model fits into half
    /// of the memory, else f16.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits with the range of 32.
    Bf16,
}

impl Precision {
    /// The dtype of what is not kept as it is stored; `bytes` is the size of the model's files.
    pub fn resolve(self, device: DeviceChoice, bytes: u64) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
            Self::Auto if device.resolved() != DeviceChoice::Cpu => FloatDType::F16,
            // Files usually hold 16 bits: twice that in f32.
            Self::Auto => match machine_bytes() {
                Some(memory) if bytes.saturating_mul(4) > memory => FloatDType::F16,
                _ => FloatDType::F32,
            },
        }
    }

    /// The dtype on a device; f32 in place of one that was not asked for.
    ///
    /// # Errors
    /// If the device does not compute in the dtype that was asked for.
    pub fn on<B: Backend>(
        self,
        choice: DeviceChoice,
        bytes: u64,
        device: &B::Device,
    ) -> Result<FloatDType> {
        self.supported::<B>(self.resolve(choice, bytes), choice, device)
    }

    fn supported<B: Backend>(
        self,
        dtype: FloatDType,
        choice: DeviceChoice,
        device: &B::Device,
    ) -> Result<FloatDType> {
        if B::supports_dtype(device, dtype.into()) {
            return Ok(dtype);
        }
        match self {
            Self::Auto => Ok(FloatDType::F32),
            _ => bail!(
                "device {} does not compute in {dtype:?}; choose another --dtype",
                choice.resolved()
            ),
        }
    }
}

/// Size of the weight files in a directory; of a GGUF file, which may hold fewer bits, what it
/// would be in 16.
pub fn weight_bytes(dir: &Path) -> u64 {
    if let Ok(header) = GgufHeader::open(dir) {
        // A damaged header may say anything; loading tells.
        let bytes = |shape: &[usize]| {
            let sides = shape.iter().map(|&side| side as u64);
            sides.fold(2, u64::saturating_mul)
        };
        let tensors = header.tensors.iter().map(|t| bytes(&t.shape));
        return tensors.fold(0, u64::saturating_add);
    }
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let files = entries.flatten().filter(|entry| {
        let path = entry.path();
        path.extension()
            .is_some_and(|e| e == "safetensors" || e == "bin")
    });
    files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}

impl ModelArguments {
    /// Loads the model.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn load<B: Backend>(&self, device: &B::Device) -> Result<(Assistant<B>, LoadReport)> {
        self.load_as(self.blocks()?, Narrow::Fastest, device)
    }

    /// The blocks that `--quantize` names, if it is given.
    ///
    /// # Errors
    /// If it names a type of GGUF files, which nothing computes on as it is.
    pub fn blocks(&self) -> Result<Option<Quantize>> {
        match self.quantize {
            None => Ok(None),
            Some(Format::Blocks(blocks)) => Ok(Some(blocks)),
            Some(Format::Gguf(kind)) => {
                bail!(
                    "--quantize {kind} is of `export --layout gguf`; elsewhere it is q8, q4 or stored"
                )
            }
        }
    }

    /// Loads the model with its weights in other blocks than asked for; `narrow` is of
    /// `--dtype auto`.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn load_as<B: Backend>(
        &self,
        quantize: Option<Quantize>,
        narrow: Narrow,
        device: &B::Device,
    ) -> Result<(Assistant<B>, LoadReport)> {
        let tokenizer = names::given_tokenizer(self.tokenizer.as_deref())?;
        let Some(dir) = names::given_model(self.model.as_deref())? else {
            return self.random::<B>(tokenizer, quantize, device);
        };
        let base = names::given_model(self.base.as_deref())?;
        let bytes = weight_bytes(base.as_deref().unwrap_or(&dir));
        let dtype = self.dtype.on::<B>(self.device, bytes, device)?;
        let bar = bar();
        let options = AssistantOptions {
            load: LoadOptions {
                dtype,
                narrow: match self.dtype {
                    Precision::Auto => narrow,
                    _ => Narrow::Never,
                },
                base,
                vision: names::given_model(self.vision.as_deref())?,
                mmproj: self.mmproj.clone(),
                look_up: Some(names::hub().look_up()),
                quantize,
                allow_unused: self.allow_unused,
                progress: Some(progress(&bar)),
                ..LoadOptions::default()
            },
            template: self.template,
            tokenizer,
        };
        let loaded = Assistant::load(&dir, &options, device);
        bar.finish_and_clear();
        Ok(loaded?)
    }

    fn random<B: Backend>(
        &self,
        tokenizer: Option<PathBuf>,
        quantize: Option<Quantize>,
        device: &B::Device,
    ) -> Result<(Assistant<B>, LoadReport)> {
        let Some(name) = &self.preset else {
            bail!("no model is named: give its directory with --model DIR");
        };
        let config = preset(name)?;
        let Some(tokenizer) = tokenizer else {
            bail!("a preset has no tokenizer: give one with --tokenizer");
        };
        let dtype = match self.dtype {
            Precision::Auto => FloatDType::F16,
            other => other.resolve(self.device, 0),
        };
        let dtype = self.dtype.supported::<B>(dtype, self.device, device)?;
        let mut model = init_random(config.init::<B>(device)?, dtype, 0)?;
        if let Some(wanted) = quantize {
            model.language_model.quantize_here(wanted)?;
        }
        let processor = match &config.vision {
            Some(vision) => {
                let side = u32::try_from(vision.image_size).context("image size")?;
                let config = ImageProcessorConfig::clip(side).with_aspect(ImageAspect::Pad);
                Some(ImageProcessor::new(config)?)
            }
            None => None,
        };
        let tokenizer = TextTokenizer::from_dir(&tokenizer)?;
        let template = self.template.unwrap_or(Template::V1.into());
        let template = Layout::of(template, &tokenizer, None)?;
        let assistant = Assistant::new(model, tokenizer, processor, template)?;
        Ok((assistant, LoadReport::default()))
    }
}

/// Loads a CLIP that scores texts and pictures.
///
/// # Errors
/// If it cannot be loaded.
pub fn load_clip<B: Backend>(
    directory: &Path,
    choice: DeviceChoice,
    precision: Precision,
    allow_unused: bool,
    device: &B::Device,
) -> Result<ClipScorer<B>> {
    let dtype = precision.on::<B>(choice, weight_bytes(directory), device)?;
    let bar = bar();
    let moved = progress(&bar);
    let clip = ClipScorer::load(directory, dtype, allow_unused, Some(&moved), device);
    bar.finish_and_clear();
    Ok(clip?)
}

/// A named configuration.
///
/// # Errors
/// If there is none of that name.
pub fn preset(name: &str) -> Result<SqLlavaConfig> {
    SqLlavaConfig::preset(name).with_context(|| {
        let known = SqLlavaConfig::PRESETS.join(", ");
        format!("unknown preset \"{name}\"; known are {known}")
    })
}

/// A bar of bytes on standard error; nothing off a terminal.
pub fn bar() -> ProgressBar {
    let style = "loading {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Moves the bar while a model is read.
pub fn progress(bar: &ProgressBar) -> Progress {
    let bar = bar.clone();
    Arc::new(move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })
}
