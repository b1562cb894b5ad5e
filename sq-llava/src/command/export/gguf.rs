//! `sq-llava export --layout gguf`.

use anyhow::{Result, bail};
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use sq_llava_data::MEDIA_MARKER;
use sq_llava_model::weights::{GgufOptions, GgufType, Narrow, save_gguf};

use super::Export;
use crate::model::{Format, Precision};
use crate::output::tell;

impl Export {
    /// Writes the files for llama.cpp, and says on standard error what it does otherwise.
    pub(super) fn for_llama_cpp<B: Backend>(&self, device: &B::Device) -> Result<()> {
        let (mut assistant, _) = self.model.load_as::<B>(None, Narrow::Never, device)?;
        let weight = &assistant.model.language_model.model.embed_tokens.weight;
        let matrices = match (self.model.quantize, self.save_dtype) {
            (Some(Format::Gguf(kind)), _) => kind,
            (Some(Format::Blocks(_)), _) => {
                bail!("--layout gguf has types of its own: --quantize q8_0, q4_0, q4_1 or q4_k")
            }
            (None, Precision::Auto) => of_dtype(FloatDType::from(weight.dtype())),
            (None, other) => of_dtype(other.resolve(self.model.device, 0)),
        };
        assistant.model = assistant.model.merge_lora();
        let template = assistant
            .template
            .to_jinja(&assistant.tokenizer, MEDIA_MARKER)?;
        let name = self.out.file_name().map(|name| name.to_string_lossy());
        let saved = save_gguf(
            &assistant.model,
            &self.out,
            &GgufOptions {
                tokenizer: &assistant.tokenizer,
                chat_template: Some(&template),
                processor: assistant.processor.as_ref(),
                matrices,
                context: self.context,
                name: name.as_deref().unwrap_or("model"),
            },
        )?;
        for file in saved.files {
            tell(file.display());
        }
        for note in saved.notes {
            tracing::warn!("{note}");
        }
        Ok(())
    }
}

fn of_dtype(dtype: FloatDType) -> GgufType {
    match dtype {
        FloatDType::F16 => GgufType::F16,
        FloatDType::BF16 => GgufType::Bf16,
        _ => GgufType::F32,
    }
}
