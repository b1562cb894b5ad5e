//! Saving a model for llama.cpp: a GGUF file of the language model, and one of tower and projector.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, backend::Backend};
use sq_llava_data::TextTokenizer;
use sq_llava_data::atomic::AtomicFile;
use sq_llava_data::gguf::{GgufField, GgufOutput, write_gguf};
use sq_llava_data::image::ImageProcessor;

use super::gguf::{GgufType, LanguageFile, PictureFile, Tensor};
use super::layout::Section;
use super::save::whole_entries;
use super::write::{Entry, make_dir};
use crate::config::{LlamaConfig, ProjectorConfig, SlidingWindow, SqLlavaConfig};
use crate::error::ModelError;
use crate::language::quantize::in_blocks;
use crate::sq_llava::SqLlava;

/// What stands beside the weights in the files, and how they are written.
#[derive(Debug, Clone, Copy)]
pub struct GgufOptions<'a> {
    /// The tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// The chat template in Jinja, if there is one.
    pub chat_template: Option<&'a str>,
    /// How pictures are prepared; a model with a vision tower needs it.
    pub processor: Option<&'a ImageProcessor>,
    /// Type of the matrices.
    pub matrices: GgufType,
    /// Context in tokens, where it is to be shorter than the model's. In one that no sliding
    /// window leaves, llama.cpp's architectures without windows compute the same.
    pub context: Option<usize>,
    /// Name of the model; the files are named after it.
    pub name: &'a str,
}

/// What was written.
#[derive(Debug, Clone, Default)]
pub struct SavedGguf {
    /// The language model's file, and that of tower and projector if there is one.
    pub files: Vec<PathBuf>,
    /// What llama.cpp does otherwise in small ways, and matrices that did not fit the type.
    pub notes: Vec<String>,
}

/// Saves `NAME-TYPE.gguf` and, for a model that takes pictures, `mmproj-NAME-TYPE.gguf`. Rows of
/// new tokens become rows of embedding and head. Both get their names when both are written; one
/// tensor at a time is held in memory.
///
/// # Errors
/// If llama.cpp cannot compute the model (prototypes are among what it cannot), adapters are not
/// merged, weights are in blocks already, a file of the name is there, or it cannot be written.
pub fn save_gguf<B: Backend>(
    model: &SqLlava<B>,
    dir: &Path,
    options: &GgufOptions<'_>,
) -> Result<SavedGguf, ModelError> {
    check_prototypes(model)?;
    if !in_blocks(&model.language_model).is_empty() {
        return Err(ModelError::Argument(
            "the weights are in blocks already; load the model without, and name the type of the GGUF file"
                .into(),
        ));
    }
    let mut llama = model.config.llama.clone();
    llama.vocab_size = model.language_model.vocabulary();
    shorten(&mut llama, options.context)?;
    let language = LanguageFile::new(&llama, options.matrices)?;
    let pictures = picture_file(&model.config, options)?;
    let mut texts = language.fields();
    texts.extend(
        options
            .tokenizer
            .to_gguf(llama.vocab_size, options.chat_template)?,
    );
    let (of_text, of_pictures): (Vec<Entry>, Vec<Entry>) = whole_entries(model, DType::F32)?
        .into_iter()
        .partition(|entry| {
            matches!(
                Section::of(&entry.name),
                Some(Section::Llm | Section::LmHead)
            )
        });

    make_dir(dir)?;
    let mut saved = SavedGguf::default();
    let path = dir.join(format!("{}-{}.gguf", options.name, options.matrices));
    let tensors = language.tensors(of_text)?;
    saved.notes.extend(other_types(&tensors, options.matrices));
    let mut written = vec![(write(&path, texts, &tensors, options.name)?, path)];
    if let Some(file) = pictures {
        let path = dir.join(format!("mmproj-{}-{}.gguf", options.name, file.kind()));
        let tensors = file.tensors(of_pictures)?;
        let name = options.name;
        written.push((write(&path, file.fields(), &tensors, name)?, path));
        saved.notes.extend(file.notes());
    }
    for (file, path) in written {
        file.commit().map_err(|e| ModelError::io(&path, e))?;
        saved.files.push(path);
    }
    Ok(saved)
}

/// llama.cpp has no graph for prototypes, and a model without those that it was trained with is
/// another one.
fn check_prototypes<B: Backend>(model: &SqLlava<B>) -> Result<(), ModelError> {
    let centers = match (&model.config.prototype, &model.config.projector) {
        (Some(prototype), _) => prototype.num_centers,
        (None, ProjectorConfig::Cluster(cluster)) => cluster.num_latents,
        (None, _) => return Ok(()),
    };
    Err(ModelError::Argument(format!(
        "this model finds {centers} prototypes among the tokens of a picture, which llama.cpp cannot compute, and it answers otherwise without those that it was trained with; export it in layout original, or train one without prototypes for llama.cpp"
    )))
}

/// The file of tower and projector, for a model that takes pictures.
fn picture_file<'a>(
    config: &'a SqLlavaConfig,
    options: &GgufOptions<'a>,
) -> Result<Option<PictureFile<'a>>, ModelError> {
    match (&config.vision, options.processor) {
        (None, _) => Ok(None),
        (Some(vision), Some(processor)) => {
            let processor = processor.config();
            PictureFile::new(config, vision, processor, options.matrices).map(Some)
        }
        (Some(_), None) => Err(ModelError::Argument(
            "a model with a vision tower is saved with its image processor".into(),
        )),
    }
}

/// Another context, which may leave windows nothing to hide.
fn shorten(llama: &mut LlamaConfig, context: Option<usize>) -> Result<(), ModelError> {
    let Some(context) = context else {
        return Ok(());
    };
    if context == 0 || context > llama.max_position_embeddings {
        return Err(ModelError::Argument(format!(
            "a context of {context} tokens: this model has one of {}",
            llama.max_position_embeddings
        )));
    }
    llama.max_position_embeddings = context;
    // Layers with a window may rotate otherwise than the others do.
    let hides = |window: &SlidingWindow| window.tokens < context;
    if llama.rope_local_base_freq.is_none() && !llama.sliding_window.as_ref().is_some_and(hides) {
        llama.sliding_window = None;
    }
    Ok(())
}

/// Matrices in other types than asked for, by type.
fn other_types(tensors: &[Tensor], wanted: GgufType) -> Vec<String> {
    let mut counts: Vec<(GgufType, usize)> = Vec::new();
    for tensor in tensors {
        let line = tensor.line();
        if line.shape.len() < 2 || tensor.kind() == wanted {
            continue;
        }
        match counts.iter_mut().find(|(kind, _)| *kind == tensor.kind()) {
            Some((_, count)) => *count += 1,
            None => counts.push((tensor.kind(), 1)),
        }
    }
    let note = |(kind, count)| {
        format!(
            "{count} matrices are in {kind}: embedding and head are kept in 8 bits at least, and rows have to be whole blocks of {wanted}"
        )
    };
    counts.into_iter().map(note).collect()
}

fn write(
    path: &Path,
    fields: Vec<(String, GgufField)>,
    tensors: &[Tensor],
    name: &str,
) -> Result<AtomicFile, ModelError> {
    if path.exists() {
        return Err(ModelError::weights(
            path,
            "is there already; choose another directory",
        ));
    }
    let mut all = fields;
    all.insert(1, ("general.name".into(), name.into()));
    let lines: Vec<GgufOutput> = tensors.iter().map(Tensor::line).collect();
    write_gguf(path, &all, &lines, |index| tensors[index].bytes())
}
