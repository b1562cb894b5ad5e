//! Weights: reading the checkpoint directories that people have, and writing them.
//!
//! [`load_model`] reads original LLaVA, llava-hf, a language model with a vision tower beside it,
//! and run directories (adapters and projector on a base); from safetensors and PyTorch files,
//! whole or in shards, and from GGUF files. Files are mapped and converted tensor by
//! tensor, so the memory taken is the model's own in its target dtype and little more.
//! [`save_pretrained`] writes whole models, [`save_gguf`] those for llama.cpp, [`save_adapters`]
//! what a training run changed.

mod adapter;
mod adapter_config;
mod checkpoint;
mod checkpoint_dir;
mod fill;
mod gguf;
mod layout;
mod llava_hf;
mod load;
mod mmproj_config;
mod module;
mod narrow;
mod options;
mod pickle;
mod plan;
mod pytorch;
mod quantized;
mod random;
mod report;
mod run;
mod save;
mod save_gguf;
mod save_run;
mod save_vision;
mod shapes;
mod source;
mod tensor;
mod tower;
mod tower_name;
mod vision;
mod write;

pub use gguf::GgufType;
pub use layout::Layout;
pub use llava_hf::{prepare_llava_hf, save_llava_hf_files};
pub use load::{Loaded, load_model};
pub use mmproj_config::mmproj_config;
pub use module::load_module;
pub use options::{FreshParts, LoadOptions, LookUp, Narrow, Progress};
pub use plan::{CheckpointKind, ModelFiles};
pub use random::init_random;
pub use report::{LoadReport, Mismatch};
pub use save::{SaveOptions, save_pretrained};
pub use save_gguf::{GgufOptions, SavedGguf, save_gguf};
pub use save_run::{RunOrigin, save_adapters};
pub use save_vision::save_vision_tower;
pub use tower::{LoadedTower, load_vision_tower};
pub use tower_name::named_vision_tower;
pub use write::save_tensors;
