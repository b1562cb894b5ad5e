//! A tokenizer for transformers' `LlavaProcessor`: one `tokenizer.json`, also of a bare
//! SentencePiece model, and the names of its tokens.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NormalizerWrapper, Replace, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use super::save::write;
use super::{SentencePiece, TextTokenizer};
use crate::DataError;
use crate::text::conversation::IMAGE_TOKEN;
use crate::text::sentencepiece::SPACE_MARK;

impl TextTokenizer {
    /// The chat template that lay beside the tokenizer: its `chat_template`, or the default one
    /// of several.
    pub fn chat_template(&self) -> Option<&str> {
        match self.config.get("chat_template")? {
            Value::String(text) => Some(text),
            Value::Array(several) => several
                .iter()
                .find(|one| one["name"] == "default")
                .and_then(|one| one["template"].as_str()),
            _ => None,
        }
    }

    /// The tokens that the files name (`bos_token`, `eos_token`, …): variables of a chat template.
    pub fn named_tokens(&self) -> Map<String, Value> {
        self.named.clone()
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` from which transformers' `AutoTokenizer`
    /// gives the ids that prompts have here, with `chat_template` beside them. The vocabulary must
    /// hold `<image>`.
    ///
    /// # Errors
    /// If the vocabulary lacks `<image>`, or a file cannot be written.
    pub fn save_for_transformers(
        &self,
        dir: impl AsRef<Path>,
        chat_template: &str,
    ) -> Result<(), DataError> {
        let dir = dir.as_ref();
        if self.id(IMAGE_TOKEN).is_none() {
            return Err(DataError::Encoding(format!(
                "the vocabulary lacks {IMAGE_TOKEN}, which transformers puts for each part of a picture"
            )));
        }
        let failed = |e: tokenizers::Error| DataError::Encoding(e.to_string());
        let mut whole = self.inner.clone();
        whole.with_post_processor(self.post_processor.clone());
        if let Some(model) = &self.sentencepiece {
            self.as_written(&mut whole, model).map_err(failed)?;
        }
        self.put_begin_token(&mut whole).map_err(failed)?;
        let text = whole.to_string(false).map_err(failed)?;
        write(&dir.join("tokenizer.json"), text.as_bytes())?;

        let mut config = self.config_json();
        // A class that takes the file as it is; LLaMA's makes steps of its own.
        config["tokenizer_class"] = json!("PreTrainedTokenizerFast");
        config["processor_class"] = json!("LlavaProcessor");
        config["image_token"] = json!(IMAGE_TOKEN);
        config["extra_special_tokens"] = json!({"image_token": IMAGE_TOKEN});
        config["padding_side"] = json!("left");
        config["pad_token"] = json!(self.pad_id().and_then(|id| self.token(id)));
        config["clean_up_tokenization_spaces"] = json!(false);
        if let Some(keys) = config.as_object_mut() {
            for slow in [
                "legacy",
                "sp_model_kwargs",
                "add_prefix_space",
                "chat_template",
            ] {
                keys.remove(slow);
            }
        }
        write(
            &dir.join("tokenizer_config.json"),
            format!("{config:#}\n").as_bytes(),
        )?;
        write(&dir.join("chat_template.jinja"), chat_template.as_bytes())
    }

    /// A bare model's own steps in the words of `tokenizer.json`. With `legacy` a space goes before
    /// every stretch of text, as the library has it. Without, only before the first; but a prompt
    /// is encoded by itself after a picture, where it begins with a line break.
    fn as_written(&self, whole: &mut Tokenizer, model: &SentencePiece) -> tokenizers::Result<()> {
        if model.legacy || !self.strips_first_space() {
            return Ok(());
        }
        let line = ReplacePattern::Regex(r"\A\n".into());
        whole.with_normalizer(Some(Sequence::new(vec![
            NormalizerWrapper::from(Replace::new(line, format!("{SPACE_MARK}\n"))?),
            Replace::new(" ", SPACE_MARK.to_string())?.into(),
        ])));
        let first = Metaspace::new(SPACE_MARK, PrependScheme::First, false);
        whole.with_pre_tokenizer(Some(PreTokenizerWrapper::Metaspace(first)));
        Ok(())
    }

    /// Has the post-processor put the begin token where this tokenizer does, and nowhere else.
    fn put_begin_token(&self, whole: &mut Tokenizer) -> tokenizers::Result<()> {
        let bos = self.bos.filter(|_| self.adds_bos);
        let first = whole.encode("", true)?.get_ids().first().copied();
        if first.map(i64::from) == bos {
            return Ok(());
        }
        let name = bos.and_then(|id| Some((self.token(id)?, u32::try_from(id).ok()?)));
        let Some((bos, id)) = name else {
            whole.with_post_processor(None::<PostProcessorWrapper>);
            return Ok(());
        };
        let mut template = TemplateProcessing::builder();
        template
            .try_single(vec![format!("{bos}:0"), "$A:0".into()])?
            .try_pair(vec![format!("{bos}:0"), "$A:0".into(), "$B:1".into()])?
            .special_tokens(vec![(bos, id)]);
        whole.with_post_processor(Some(template.build()?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_07_the_written_tokenizer_gives_the_ids_of_the_bare_model() {
        for legacy in [false, true] {
            let path = golden::llama_tokenizer().join("tokenizer.model");
            let mut bare = TextTokenizer::from_sentencepiece(path, legacy).unwrap();
            let dir = tempfile::tempdir().unwrap();
            assert!(bare.save_for_transformers(dir.path(), "").is_err());
            bare.add_special_tokens(&[IMAGE_TOKEN]).unwrap();
            bare.save_for_transformers(dir.path(), "a template")
                .unwrap();
            let written = TextTokenizer::from_dir(dir.path()).unwrap();
            assert_eq!(written.chat_template(), Some("a template"));
            assert!(written.adds_bos());
            // The file alone, as the library itself reads it.
            let library = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
            for text in [
                "",
                "USER: a  b",
                "\nq\n漢字 ASSISTANT:",
                "x</s>",
                "x</s>a b",
                "\n",
            ] {
                let expected = bare.encode(text, true).unwrap();
                assert_eq!(
                    written.encode(text, true).unwrap(),
                    expected,
                    "{text:?}, legacy {legacy}"
                );
                let found = library.encode(text, true).unwrap();
                let found: Vec<i64> = found.get_ids().iter().map(|&id| id.into()).collect();
                assert_eq!(found, expected, "{text:?}, legacy {legacy}, by the library");
            }
        }
    }
}
