//! Architectures of llama.cpp and the families of decoders that they are.
//!
//! What an architecture computes without being told stands in llama.cpp's `src/models/*.cpp`; what
//! its files hold, in the classes of its converter.

use crate::config::{Family, LlamaConfig, SlidingWindow};

/// An architecture, by its family. Mistral is written as, and read as, LLaMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::weights) struct Architecture(pub Family);

/// Gemma 2 and 3 of 27 billion parameters, which llama.cpp tells by their layers.
const GEMMA2_27B: usize = 46;
const GEMMA3_27B: usize = 62;

impl Architecture {
    /// By `general.architecture`.
    pub fn of(name: &str) -> Option<Self> {
        let mut all = Family::ALL.into_iter().map(Self::for_family);
        all.find(|arch| arch.name() == name)
    }

    /// The architecture that a family is written as.
    pub fn for_family(family: Family) -> Self {
        Self(match family {
            Family::Mistral => Family::Llama,
            other => other,
        })
    }

    /// Names of all, for messages.
    pub fn known() -> String {
        let mut names: Vec<&str> = Family::ALL.map(|f| Self::for_family(f).name()).into();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }

    /// Its name, which its keys begin with.
    pub fn name(self) -> &'static str {
        match self.0 {
            Family::Llama => "llama",
            // Never in a file: Mistral's are "llama".
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma2 => "gemma2",
            Family::Gemma3Text => "gemma3",
            Family::Smollm3 => "smollm3",
            Family::Olmo2 => "olmo2",
            Family::Phi3 => "phi3",
        }
    }

    /// Whether rotation turns pairs of neighbours (`LLAMA_ROPE_TYPE_NORM`): the converter then
    /// orders the rows of queries and keys by them.
    pub fn turns_neighbours(self) -> bool {
        matches!(self.0, Family::Llama | Family::Smollm3)
    }

    /// Whether it divides each frequency by `rope_freqs.weight`.
    pub fn takes_factors(self) -> bool {
        self.0 == Family::Llama
    }

    /// Whether it divides frequencies by other numbers in long contexts
    /// (`rope_factors_long.weight`), and may rotate the first entries of a head alone.
    pub fn takes_two_factors(self) -> bool {
        self.0 == Family::Phi3
    }

    /// Whether it computes YaRN as transformers does, with the usual ends of the ramp: Phi-3's class has
    /// none, and in Gemma layers with a window are another matter.
    pub fn takes_yarn(self) -> bool {
        match self.0 {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => true,
            Family::Smollm3 | Family::Olmo2 => true,
            Family::Gemma2 | Family::Gemma3Text | Family::Phi3 => false,
        }
    }

    /// Whether queries and the output of attention are as wide as the residual stream.
    pub fn has_square_heads(self) -> bool {
        matches!(self.0, Family::Qwen2 | Family::Olmo2 | Family::Phi3)
    }

    /// Whether a file must have a head of its own, even one equal to the embedding.
    pub fn needs_head(self) -> bool {
        self.0 == Family::Olmo2
    }

    /// Whether the head is always the embedding.
    pub fn is_tied(self) -> bool {
        self.0 == Family::Gemma2
    }

    /// What scores are divided by the root of: the width of a head, but for the largest Gemmas.
    pub fn score_scalar(self, config: &LlamaConfig) -> f64 {
        let layers = config.num_hidden_layers;
        let large = match self.0 {
            Family::Gemma2 => layers == GEMMA2_27B,
            Family::Gemma3Text => layers == GEMMA3_27B,
            _ => false,
        };
        match large {
            true => (config.hidden_size / config.num_attention_heads) as f64,
            false => config.head_dim() as f64,
        }
    }

    /// Every how manyth layer sees all tokens, where the file does not list them; `None` for an
    /// architecture without windows.
    pub fn window_pattern(self) -> Option<usize> {
        match self.0 {
            Family::Gemma2 => Some(2),
            Family::Gemma3Text => Some(6),
            _ => None,
        }
    }

    /// The window in tokens where a file names none.
    pub fn default_window(self) -> Option<usize> {
        (self.0 == Family::Gemma2).then_some(4096)
    }

    /// Layers that do not rotate.
    pub fn unrotated(self, layers: usize) -> Vec<usize> {
        match self.0 {
            Family::Smollm3 => (0..layers).filter(|layer| layer % 4 == 3).collect(),
            _ => Vec::new(),
        }
    }
}

/// Windows in all layers but every `pattern`th; a pattern of 0 is all of them, 1 none.
pub(super) fn windows(tokens: usize, pattern: usize, layers: usize) -> SlidingWindow {
    let slides = |layer| pattern == 0 || layer % pattern < pattern - 1;
    SlidingWindow {
        tokens,
        layers: (0..layers).map(slides).collect(),
    }
}
