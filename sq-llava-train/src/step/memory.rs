//! Memory of a training step, by arithmetic.
//!
//! Activations are what the graph keeps: that of Burn's own tensor operations, or that of our
//! kernels, which keep no scores of attention and less of the activations. Left out: the graph of
//! prototypes and projector, buffers that live within one operation, the allocator's slack, and the
//! framework itself.

use sq_llava_model::SqLlavaConfig;
use sq_llava_model::config::{LlamaConfig, NormPlacement, QkNorm, VisionConfig};
use sq_llava_model::kernels::Kernels;
use sq_llava_model::language::quantize::Quantize;
use sq_llava_model::ops::lora::LoraConfig;

use crate::error::TrainError;
use crate::recipe::{BaseDtype, GradientCheckpointing, Objective, Recipe};
use crate::step::counts::trainable_counts;
use crate::step::groups::{ParamGroup, Trains};

/// Bytes of an f32.
const F32: usize = 4;
/// Copies of a chunk's logits in the loss and its backward pass: logits, log-probabilities, and the
/// gradients of both. By kernels gradients take the place of the logits.
const LOGITS: usize = 4;

/// A training step.
#[derive(Debug, Clone)]
pub struct StepMemory<'a> {
    /// The model, without adapters.
    pub config: &'a SqLlavaConfig,
    /// Bytes of a frozen weight in floats.
    pub base_bytes: usize,
    /// How the LLM's are quantised.
    pub quantize: Option<Quantize>,
    /// The parts that train.
    pub trains: Trains,
    /// Trainable values.
    pub trainable: usize,
    /// Adapters of the LLM.
    pub llm: Option<LoraConfig>,
    /// Adapters of the vision tower.
    pub vision: Option<LoraConfig>,
    /// Rows that go through the model at once: samples, or packs of them.
    pub rows: usize,
    /// Length of each, its image tokens included.
    pub tokens: usize,
    /// Pictures in them, each of as many tiles as any has.
    pub pictures: usize,
    /// Whether gradients of several batches are added up.
    pub accumulates: bool,
    /// Groups of threads that share these rows.
    pub thread_groups: usize,
    /// Tokens whose logits are in memory at once.
    pub chunk_tokens: usize,
    /// What is learnt; without the text nothing goes through the LLM.
    pub objective: Objective,
    /// Kernels that compute it.
    pub kernels: Kernels,
}

/// Its memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Weights that do not train.
    pub frozen: usize,
    /// Weights that do, in f32.
    pub trainable: usize,
    /// Their gradients, of each group of threads; once more while batches are added up.
    pub gradients: usize,
    /// AdamW's two moments of each.
    pub moments: usize,
    /// What the layers keep for the way back.
    pub activations: usize,
    /// Logits of a chunk, of each group of threads.
    pub logits: usize,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> usize {
        self.frozen
            + self.trainable
            + self.gradients
            + self.moments
            + self.activations
            + self.logits
    }
}

impl std::fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} GiB (frozen weights {:.2}, trainable {:.2}, gradients {:.2}, AdamW {:.2}, activations {:.2}, logits {:.2})",
            gib(self.total()),
            gib(self.frozen),
            gib(self.trainable),
            gib(self.gradients),
            gib(self.moments),
            gib(self.activations),
            gib(self.logits)
        )
    }
}

/// Bytes as GiB.
pub fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Values that a tower's layers keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Kept {
    layers: usize,
    /// In one layer.
    layer: usize,
    /// Its input.
    input: usize,
}

impl Kept {
    /// Values at the worst moment.
    fn values(&self, checkpointing: GradientCheckpointing) -> usize {
        match checkpointing {
            GradientCheckpointing::None => self.layers * self.layer,
            GradientCheckpointing::Blocks => self.layers * self.input + self.layer,
        }
    }
}

impl<'a> StepMemory<'a> {
    /// The longest batch of a recipe's stage, without kernels. `trainable` are the values of all
    /// groups.
    pub fn of_stage(
        config: &'a SqLlavaConfig,
        recipe: &Recipe,
        stage: u8,
        trains: Trains,
        trainable: usize,
    ) -> Self {
        let settings = recipe.stage(stage);
        let adapters = |on: bool, lora: Option<LoraConfig>| lora.filter(|_| on);
        Self {
            config,
            base_bytes: match recipe.dtype {
                BaseDtype::F32 => 4,
                BaseDtype::F16 | BaseDtype::Bf16 => 2,
            },
            quantize: recipe.quantize,
            trains,
            trainable,
            llm: adapters(stage == 2, recipe.lora.llm.config()),
            vision: adapters(stage == 2, recipe.lora.vision.config()),
            rows: settings.batch_size,
            tokens: settings.max_length,
            pictures: settings.pictures_at_once(config.tokens_per_image()),
            accumulates: settings.accumulation > 1 || recipe.groups() > 1,
            thread_groups: recipe.groups(),
            chunk_tokens: recipe.loss.chunk_tokens,
            objective: settings.objective,
            kernels: Kernels::None,
        }
    }

    /// The estimate.
    pub fn estimate(&self, checkpointing: GradientCheckpointing) -> MemoryEstimate {
        let count = self.config.parameters();
        // Prototypes and projector are f32, whether they train or not.
        let bridge = count.prototype + count.projector;
        let still = if self.trains.projector { 0 } else { bridge };
        let llm = match self.quantize {
            Some(quantize) => quantize.bytes(&self.config.llama, self.kernels, self.base_bytes),
            None => count.language_model * self.base_bytes,
        };
        let trainable = self.trainable * F32;
        MemoryEstimate {
            frozen: count.vision_tower * self.base_bytes + llm + still * F32,
            trainable,
            gradients: trainable * (self.groups_at_once() + usize::from(self.accumulates)),
            moments: 2 * trainable,
            activations: self.activations(checkpointing),
            logits: match self.objective {
                Objective::Words => 0,
                Objective::Text => {
                    self.groups_at_once()
                        * self.chunk_tokens
                        * self.config.llama.vocab_size
                        * self.state_bytes()
                        * if self.kernels == Kernels::None {
                            LOGITS
                        } else {
                            1
                        }
                }
            },
        }
    }

    /// Groups of threads that compute at the same time: those of the CPU; elsewhere the parts of a batch
    /// follow one another.
    fn groups_at_once(&self) -> usize {
        match self.kernels {
            Kernels::Cpu => self.thread_groups,
            Kernels::Gpu | Kernels::None => 1,
        }
    }

    /// Bytes of a value of the layers' states: on GPUs they are in bf16 where the weights are
    /// ([`hidden`](sq_llava_model::ops::hidden)), and nothing trains there in f16.
    fn state_bytes(&self) -> usize {
        match self.kernels {
            Kernels::Gpu => self.base_bytes,
            Kernels::Cpu | Kernels::None => F32,
        }
    }

    /// What of a batch's `count` is there at the same time.
    fn part(&self, count: usize) -> usize {
        match self.kernels {
            Kernels::Cpu => count,
            Kernels::Gpu | Kernels::None => count.div_ceil(self.thread_groups),
        }
    }

    /// What the layers keep, in bytes.
    pub fn activations(&self, checkpointing: GradientCheckpointing) -> usize {
        let llama = self.llama();
        let vision = self.vision();
        let values = match checkpointing {
            GradientCheckpointing::None => {
                llama.values(checkpointing) + vision.values(checkpointing)
            }
            // One tower goes back after the other; the inputs of both wait for that.
            GradientCheckpointing::Blocks => {
                let inputs = llama.layers * llama.input + vision.layers * vision.input;
                inputs + llama.layer.max(vision.layer)
            }
        };
        values * self.state_bytes() + self.adapter_copies(checkpointing)
    }

    /// Bytes of the adapters in the states' dtype, which the graph keeps where it is not theirs.
    fn adapter_copies(&self, checkpointing: GradientCheckpointing) -> usize {
        if self.state_bytes() == F32 || checkpointing == GradientCheckpointing::Blocks {
            return 0;
        }
        let llm = self
            .llm
            .as_ref()
            .map(|lora| self.config.llama.lora_parameters(lora));
        let vision = self.config.vision.as_ref().zip(self.vision.as_ref());
        let vision = vision.map(|(vision, lora)| vision.lora_parameters(lora));
        self.state_bytes() * (llm.unwrap_or(0) + vision.unwrap_or(0))
    }

    /// The LLM's layers, if a gradient goes through them.
    fn llama(&self) -> Kept {
        let trains = &self.trains;
        let learns = trains.llm || trains.projector || trains.new_tokens || trains.vision;
        if !learns || self.objective == Objective::Words {
            return Kept::default();
        }
        let llama = &self.config.llama;
        let rows = self.part(self.rows) * self.tokens;
        Kept {
            layers: llama.num_hidden_layers,
            layer: rows * llama_token(llama, self.llm.as_ref(), self.tokens, self.kernels),
            input: rows * llama.hidden_size,
        }
    }

    /// The tower's layers, if they train.
    fn vision(&self) -> Kept {
        let (Some(vision), Some(layers)) = (&self.config.vision, self.config.feature_layer())
        else {
            return Kept::default();
        };
        if !self.trains.vision {
            return Kept::default();
        }
        let tokens = vision.tokens();
        let rows = self.part(self.pictures) * self.config.most_tiles() * tokens;
        let token = vision_token(vision, self.vision.as_ref(), tokens, self.kernels);
        // What its two norms keep is f32 in any case.
        let norms = 2 * vision.hidden_size * (F32 / self.state_bytes() - 1);
        Kept {
            layers,
            layer: rows * (token + norms),
            input: rows * vision.hidden_size,
        }
    }
}

/// Values that an LLM layer keeps for each token of a sequence of `tokens`.
fn llama_token(
    llama: &LlamaConfig,
    lora: Option<&LoraConfig>,
    tokens: usize,
    kernels: Kernels,
) -> usize {
    let heads = llama.num_attention_heads;
    let width = heads * llama.head_dim();
    // The input of each norm.
    let around = match llama.norm_placement {
        NormPlacement::Before | NormPlacement::Behind => 2,
        NormPlacement::Around => 4,
    };
    let qk_norms = match llama.qk_norm {
        QkNorm::None => 0,
        QkNorm::Head | QkNorm::All => width + llama.num_key_value_heads * llama.head_dim(),
    };
    let norms = around * llama.hidden_size + qk_norms;
    let copies = match kernels {
        // SiLU's input and its sigmoid; both sides of the gating product.
        Kernels::None => 4,
        // Gate and its partner.
        Kernels::Cpu | Kernels::Gpu => 2,
    };
    let gated = copies * llama.intermediate_size;
    let shared = llama.num_key_value_heads * llama.head_dim();
    let attention = attention_token(kernels, [width, shared], heads, tokens);
    let inputs = [
        &["q_proj", "k_proj", "v_proj", "qkv_proj"][..],
        &["o_proj"],
        &["gate_proj", "up_proj", "gate_up_proj"],
        &["down_proj"],
    ];
    norms + attention + gated + adapters_token(&llama.linears(), &inputs, lora, kernels)
}

/// Values that a layer of the tower keeps for each token.
fn vision_token(
    vision: &VisionConfig,
    lora: Option<&LoraConfig>,
    tokens: usize,
    kernels: Kernels,
) -> usize {
    let (width, heads) = (vision.hidden_size, vision.num_attention_heads);
    // The centred input of each of the two norms.
    let norms = 2 * width;
    // What is kept of the MLP's width: by kernels the activation's input, or gate and value; else
    // both sides of the activation's product, gated those of the gating product too.
    let copies = match (kernels, vision.gated_mlp) {
        (Kernels::Cpu | Kernels::Gpu, false) => 1,
        (Kernels::Cpu | Kernels::Gpu, true) | (Kernels::None, false) => 2,
        (Kernels::None, true) => 4,
    };
    let activation = copies * vision.intermediate_size;
    let attention = attention_token(kernels, [width; 2], heads, tokens);
    let inputs = [
        &["q_proj", "k_proj", "v_proj"][..],
        &["out_proj"],
        &["fc1"],
        &["fc2"],
    ];
    let lora = lora.map(|lora| vision.own_targets(lora));
    let adapters = adapters_token(&vision.linears(), &inputs, lora.as_ref(), kernels);
    norms + attention + activation + adapters
}

/// What attention keeps, with queries of a `width` and keys and values of another, `shared`.
fn attention_token(
    kernels: Kernels,
    [width, shared]: [usize; 2],
    heads: usize,
    tokens: usize,
) -> usize {
    match kernels {
        // Keys and values for each head; exponentials and softmax of the scores.
        Kernels::None => 3 * width + 2 * heads * tokens,
        // The output too, and of each head's scores the logarithm of a sum.
        Kernels::Cpu => 2 * width + 2 * shared + heads,
        // Scores are computed again.
        Kernels::Gpu => width + 2 * shared,
    }
}

/// Of each adapter the product with A, and with dropout what is left of the input, and the mask
/// unless the CPU's kernels make it again; without dropout inputs are shared among the linears of a
/// group.
fn adapters_token(
    linears: &[(&str, usize, usize)],
    groups: &[&[&str]],
    lora: Option<&LoraConfig>,
    kernels: Kernels,
) -> usize {
    let Some(lora) = lora else {
        return 0;
    };
    let copies = if kernels == Kernels::Cpu { 1 } else { 2 };
    let mut values = 0;
    for group in groups {
        let adapted = linears
            .iter()
            .filter(|(name, ..)| group.contains(name) && lora.targets(name));
        let inputs: Vec<usize> = adapted.map(|&(_, d_in, _)| d_in).collect();
        values += inputs.len() * lora.r;
        values += if lora.lora_dropout > 0.0 {
            copies * inputs.iter().sum::<usize>()
        } else {
            inputs.first().copied().unwrap_or(0)
        };
    }
    values
}

/// Refuses what would train where weights, gradients and moments alone are more than the machine's
/// memory, before they are allocated. `machine` is in bytes, where the system says.
///
/// # Errors
/// If they are; the message names the field of the largest part.
pub(crate) fn check_trainable(
    config: &SqLlavaConfig,
    recipe: &Recipe,
    stage: u8,
    machine: Option<u64>,
) -> Result<(), TrainError> {
    let counts = trainable_counts(config, recipe, stage);
    let values: usize = counts.iter().sum();
    let bytes = 4 * F32 * values;
    if machine.is_none_or(|machine| bytes as u64 <= machine) {
        return Ok(());
    }
    let largest = ParamGroup::ALL
        .into_iter()
        .max_by_key(|group| counts[group.index()]);
    let field = match largest {
        Some(ParamGroup::Llm) => "lora.llm.r",
        Some(ParamGroup::Vision) => "lora.vision.r",
        _ => "model.num_centers",
    };
    Err(TrainError::Recipe(format!(
        "stage {stage} would train {values} parameters; with their gradients and AdamW's moments \
         they take {:.1} GiB, and this machine has {:.1}: lower {field}",
        gib(bytes),
        gib(machine.unwrap_or(0) as usize)
    )))
}

/// Says, before the first step, what memory it will take.
pub(crate) fn announce(memory: &StepMemory<'_>, stage: u8, checkpointing: GradientCheckpointing) {
    let (rows, tokens) = (memory.rows, memory.tokens);
    tracing::info!(
        "stage {stage}: estimated memory of a step of {rows} × {tokens} tokens: {}",
        memory.estimate(checkpointing)
    );
    if checkpointing == GradientCheckpointing::None {
        let less = memory.estimate(GradientCheckpointing::Blocks);
        tracing::info!(
            "stage {stage}: with gradient_checkpointing = \"blocks\" about {:.2} GiB",
            gib(less.total())
        );
    }
}

#[cfg(test)]
mod tests;
