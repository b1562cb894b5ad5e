//! The error of this crate.

use std::path::PathBuf;

/// Why data could not be read or written. Every message names the file (or sample) at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// An image is empty, cut short, damaged, or of a format that is not supported.
    #[error("image {name}: {reason}")]
    Image {
        /// File (or label given by the caller).
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An image has more pixels than the configured limit.
    #[error(
        "image {name}: {width}x{height} is above the limit of {max_pixels} pixels; \
         shrink it, or raise `max_pixels` if it is to be trusted"
    )]
    ImageTooLarge {
        /// File (or label given by the caller).
        name: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit in pixels.
        max_pixels: u64,
    },
    /// The masks of a picture cannot be found or used.
    #[error("masks {}: {reason}", path.display())]
    Mask {
        /// The file, or the folder of masks.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A `preprocessor_config.json` asks for what the image pipeline does not do.
    #[error("image processor configuration: {0}")]
    ImageConfig(String),
    /// A tokenizer file is missing, damaged, or of a kind that is not supported.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A GGUF file is damaged or of a kind that is not supported.
    #[error("{}: {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A text could not be encoded or ids could not be decoded.
    #[error("tokenizer: {0}")]
    Encoding(String),
    /// A checkpoint's chat template is damaged, refuses a conversation, or cannot hold it.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// A checkpoint's own template is asked for, and it has none.
    #[error(
        "the checkpoint brings no chat_template (chat_template.jinja, chat_template.json or tokenizer_config.json): choose one of plain, v1, v1_sq, sq, llama_2"
    )]
    NoChatTemplate,
    /// A template needs a token that the tokenizer lacks.
    #[error("the template `{template}` needs {token}, which the tokenizer lacks: {remedy}")]
    MissingToken {
        /// Name of the template.
        template: &'static str,
        /// The token, or what it is for.
        token: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No template has this name.
    #[error(
        "no conversation template `{0}`: choose one of plain, v1, v1_sq, sq, llama_2, or checkpoint for the chat_template that a checkpoint brings"
    )]
    UnknownTemplate(String),
    /// The template has no role that asks.
    #[error(
        "the template `{0}` has no asking role: v1_sq and sq have one, and a checkpoint's own after a training with it"
    )]
    NoAskingRole(&'static str),
    /// A conversation has an order of turns or a number of images that its template cannot hold.
    #[error("conversation{}: {reason}", sample.as_ref().map(|s| format!(" of sample {s}")).unwrap_or_default())]
    Conversation {
        /// Id of the sample, where the conversation came from one.
        sample: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
    /// The system does not start as many threads.
    #[error("{threads} threads cannot be started: {reason}; ask for fewer")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system says.
        reason: String,
    },
    /// An instruction file is not LLaVA's JSON, or one of its samples is not.
    #[error("{}: {sample} at byte {offset}: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Id or index of the sample.
        sample: String,
        /// Where the sample begins, in bytes from the start of the file.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A sample in a shard (Parquet, tar), or the shard, cannot be used.
    #[error("{}: {place}: {reason}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// The row, or the key of the sample.
        place: String,
        /// What is wrong with it.
        reason: String,
        /// Whether its bytes are damaged or cut short, rather than not what is read here.
        damaged: bool,
    },
}

impl DataError {
    /// Whether bytes of a shard are damaged, so that a training may go on without the sample.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Shard { damaged: true, .. })
    }
}
