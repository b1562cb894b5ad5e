//! `sq-llava export`.

mod gguf;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use clap::{Args, ValueEnum};
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::weights::{
    Layout, Narrow, SaveOptions, prepare_llava_hf, save_llava_hf_files, save_pretrained,
};

use crate::device::Work;
use crate::model::{ModelArguments, Precision};
use crate::output::tell;

/// Merge adapters; convert layout and dtype; quantise.
#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    model: ModelArguments,
    /// Directory to be made.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Names of the keys, or files for llama.cpp.
    #[arg(long, value_enum, default_value_t = LayoutName::Original)]
    layout: LayoutName,
    /// Dtype in the files; auto keeps that in memory (see --dtype).
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    save_dtype: Precision,
    /// Largest shard in megabytes.
    #[arg(long, default_value_t = 5000)]
    max_shard_size: u64,
    /// Of layout gguf: a shorter context in tokens, in which sliding windows that llama.cpp lacks
    /// hide nothing.
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Of layout gguf: assert that the model has no prototypes, which llama.cpp cannot compute.
    /// One that has some is refused with this and without it.
    #[arg(long)]
    without_prototypes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LayoutName {
    /// LLaVA's, with this project's additions.
    Original,
    /// `LlavaForConditionalGeneration` of transformers.
    LlavaHf,
    /// A GGUF file of the language model, and `mmproj-….gguf` of tower and projector.
    Gguf,
}

impl Export {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub fn run(self) -> Result<()> {
        self.model.device.run(self)
    }

    fn check(&self) -> Result<()> {
        if self.layout == LayoutName::Gguf {
            return Ok(());
        }
        for (given, name) in [
            (self.context.is_some(), "--context"),
            (self.without_prototypes, "--without-prototypes"),
        ] {
            if given {
                bail!("{name} is of --layout gguf alone");
            }
        }
        if self.out.join("config.json").exists() {
            bail!(
                "{} already holds a model; choose another --out",
                self.out.display()
            );
        }
        Ok(())
    }
}

impl Work for Export {
    fn on<B: Backend>(self, device: &B::Device) -> Result<()> {
        self.check()?;
        if self.layout == LayoutName::Gguf {
            return self.for_llama_cpp::<B>(device);
        }
        // Adapters belong into the weights before those are rounded to blocks.
        let (kept, later) = match self.model.blocks()? {
            Some(Quantize::Stored) => (Some(Quantize::Stored), None),
            wanted => (None, wanted),
        };
        let (mut assistant, _) = self.model.load_as::<B>(kept, Narrow::Never, device)?;
        let config = &mut assistant.model.config;
        config.conversation = Some(assistant.template.name().into());
        config.asking_role = assistant.template.asking().cloned();
        let weight = &assistant.model.language_model.model.embed_tokens.weight;
        let dtype = match self.save_dtype {
            Precision::Auto => FloatDType::from(weight.dtype()),
            other => other.resolve(self.model.device, 0),
        };
        let llava_hf = self.layout == LayoutName::LlavaHf;
        if llava_hf {
            prepare_llava_hf(&mut assistant.model, &mut assistant.tokenizer)?;
        }
        let options = SaveOptions {
            dtype,
            max_shard_bytes: self.max_shard_size.saturating_mul(1_000_000),
            layout: match llava_hf {
                true => Layout::LlavaHf,
                false => Layout::Original,
            },
        };
        let mut model = assistant.model.merge_lora();
        if let Some(wanted) = later {
            model.language_model.quantize(wanted)?;
        }
        // The weights last: a directory that holds them is whole.
        std::fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        let (tokenizer, processor) = (&assistant.tokenizer, &assistant.processor);
        match processor {
            Some(processor) if llava_hf => {
                let (config, template) = (&model.config, &assistant.template);
                save_llava_hf_files(&self.out, config, tokenizer, processor, template)?;
            }
            _ => {
                tokenizer.save(&self.out)?;
                if let Some(processor) = processor {
                    let path = self.out.join("preprocessor_config.json");
                    processor.config().write(&path)?;
                }
            }
        }
        let files = save_pretrained(&model, &self.out, &options)?;
        for file in files {
            tell(file.display());
        }
        Ok(())
    }
}
