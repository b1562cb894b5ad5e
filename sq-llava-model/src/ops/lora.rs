//! LoRA (Hu et al. 2021) in factored form: `y = xWᵀ + s · drop(x) Aᵀ Bᵀ`.
//!
//! The dense product `BA` is formed only when an adapter is merged.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::ops::draws;
use crate::ops::matmul::product;
use crate::ops::product::portable_product;

/// Which linears get an adapter and how strong it is. Mirrors PEFT's `LoraConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scaling `alpha / r`.
    pub lora_alpha: f64,
    /// Probability that an input element of an adapter is dropped in training.
    pub lora_dropout: f64,
    /// Last names of the linears inside the tower that is adapted (`q_proj`, `fc1` …).
    pub target_modules: Vec<String>,
    /// Scale by `alpha / √r` instead (rsLoRA).
    #[serde(default)]
    pub use_rslora: bool,
}

impl LoraConfig {
    /// All linears of every layer, in LLaMA seven (paper, section 4: rank 128, alpha 256).
    pub fn llm(r: usize, lora_alpha: f64, lora_dropout: f64) -> Self {
        let names = [
            "q_proj",
            "k_proj",
            "v_proj",
            "qkv_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "gate_up_proj",
            "down_proj",
        ];
        Self::new(r, lora_alpha, lora_dropout, &names)
    }

    /// The six linears of every CLIP layer (paper, section 4: rank 32, alpha 64).
    pub fn vision(r: usize, lora_alpha: f64, lora_dropout: f64) -> Self {
        let names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"];
        Self::new(r, lora_alpha, lora_dropout, &names)
    }

    fn new(r: usize, lora_alpha: f64, lora_dropout: f64, names: &[&str]) -> Self {
        Self {
            r,
            lora_alpha,
            lora_dropout,
            target_modules: names.iter().map(ToString::to_string).collect(),
            use_rslora: false,
        }
    }

    /// Factor of the low-rank product.
    pub fn scaling(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// Whether the linear at a path is adapted; its last name counts.
    pub fn targets(&self, path: &str) -> bool {
        let name = path.rsplit('.').next().unwrap_or(path);
        self.target_modules.iter().any(|target| target == name)
    }
}

/// The factors of one adapted linear.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// A, `[r, in]`; `lora_A.weight` in checkpoints.
    pub a: Param<Tensor<B, 2>>,
    /// B, `[out, r]`; `lora_B.weight` in checkpoints.
    pub b: Param<Tensor<B, 2>>,
    /// `alpha / r`.
    #[module(skip)]
    pub scaling: f64,
    /// Probability of dropping an input element, inside
    /// [`with_keys`](crate::ops::draws::with_keys).
    #[module(skip)]
    pub dropout: f64,
    /// Number of this adapter in the model; makes its masks its own.
    #[module(skip)]
    pub index: u64,
}

impl<B: Backend> Lora<B> {
    /// A from PEFT's `kaiming_uniform(a = √5)`, B zero: the adapter starts as nothing.
    pub fn init(
        config: &LoraConfig,
        d_in: usize,
        d_out: usize,
        index: u64,
        device: &B::Device,
    ) -> Self {
        let bound = 1.0 / (d_in as f64).sqrt();
        let a = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        Self {
            a: a.init([config.r, d_in], device),
            b: Initializer::Zeros.init([d_out, config.r], device),
            scaling: config.scaling(),
            dropout: config.lora_dropout,
            index,
        }
    }

    /// `s · drop(x) Aᵀ Bᵀ`, computed in the input's dtype. `[rows, in]` → `[rows, out]`
    pub fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = input.dtype();
        let input = self.dropped(&input).unwrap_or(input);
        let low = portable_product(input, self.a.val().cast(dtype)); // [rows, r]
        portable_product(low, self.b.val().cast(dtype)).mul_scalar(self.scaling)
    }

    /// `s · B A`, the dense change of the weight. `[out, in]`
    pub fn delta(&self) -> Tensor<B, 2> {
        product(self.b.val(), self.a.val()).mul_scalar(self.scaling)
    }

    /// The adapter's own input, where some of its elements are dropped.
    pub(crate) fn dropped(&self, input: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        draws::dropped(input, self.index, self.dropout)
    }
}
