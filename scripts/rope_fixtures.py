"""Makes the fixtures of the kinds of rotary scaling: one tiny random LLaMA, its logits and greedy
ids under each kind, as transformers computes them. The greedy ids of a short prompt cross the length
that the model was first trained with.

    python scripts/rope_fixtures.py        # from the repository's root

Needs torch, transformers and safetensors.
"""

import json
import sys
from pathlib import Path

try:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as error:
    print(f"rope_fixtures: {error}; install torch, transformers and safetensors", file=sys.stderr)
    sys.exit(2)

OUT = Path("sq-llava-model/tests/fixtures/rope")
ORIGINAL = 16
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 48,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12, "rms_norm_eps": 1e-5,
         "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
SHORT, LONG = [1.0, 1.1, 1.3, 1.2, 1.5, 2.0], [1.4, 2.0, 3.0, 2.5, 4.0, 5.0]
# max_position_embeddings, then the scaling; theta is 100 so that short texts feel all of it.
KINDS = {
    "linear": (64, {"rope_type": "linear", "factor": 2.5}),
    "llama3": (64, {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 3.0, "original_max_position_embeddings": ORIGINAL}),
    "dynamic": (ORIGINAL, {"rope_type": "dynamic", "factor": 4.0}),
    "yarn": (64, {"rope_type": "yarn", "factor": 4.0,
                  "original_max_position_embeddings": ORIGINAL, "beta_fast": 2.0,
                  "beta_slow": 0.5}),
    "yarn_whole_context": (48, {"rope_type": "yarn", "factor": 2.0}),
    "yarn_magnitudes": (64, {"rope_type": "yarn", "factor": 4.0, "mscale": 1.5,
                             "mscale_all_dim": 0.5, "beta_fast": 1.8, "beta_slow": 0.6,
                             "truncate": False, "original_max_position_embeddings": ORIGINAL}),
    "yarn_attention_factor": (64, {"rope_type": "yarn", "factor": None, "attention_factor": 1.7,
                                   "original_max_position_embeddings": ORIGINAL}),
    "longrope": (64, {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                      "original_max_position_embeddings": ORIGINAL}),
    "longrope_factor": (64, {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                             "factor": 8.0, "original_max_position_embeddings": ORIGINAL}),
    "longrope_attention_factor": (64, {"rope_type": "longrope", "short_factor": SHORT,
                                       "long_factor": LONG, "attention_factor": 1.4,
                                       "original_max_position_embeddings": ORIGINAL}),
}
ROWS = [5, 17, 25]


def weights():
    """Random weights that 16 bits hold exactly, large enough that positions matter."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    found = {}
    for name, value in model.state_dict().items():
        drawn = torch.randn(value.shape) * (0.2 if "norm" in name else 0.5)
        found[name] = (drawn + (1.0 if "norm" in name else 0.0)).to(torch.bfloat16)
    return found


def run(config, state, ids, short):
    """Logits and greedy ids; a model of its own for each, as dynamic frequencies are remembered."""
    def model():
        made = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).eval()
        made.load_state_dict({name: value.float() for name, value in state.items()})
        return made

    with torch.no_grad():
        logits = model()(torch.tensor([ids])).logits[0]
        made = model()
        made.generation_config.eos_token_id = None
        found = made.generate(torch.tensor([short]), max_new_tokens=24, do_sample=False,
                              return_dict_in_generate=True, output_scores=True)
    best = torch.stack(found.scores)[:, 0].topk(2).values
    return logits, found.sequences[0, len(short):].tolist(), float((best[:, 0] - best[:, 1]).min())


torch.manual_seed(20260111)
torch.set_num_threads(1)
state = weights()
ids = torch.randint(3, SIZES["vocab_size"], (26,)).tolist()
cases = {}
for name, (positions, scaling) in KINDS.items():
    sizes = SIZES | {"max_position_embeddings": positions}
    # As transformers 5 writes it, and as 4 did.
    new = sizes | {"rope_parameters": scaling | {"rope_theta": 100.0}}
    old = sizes | {"rope_theta": 100.0, "rope_scaling": dict(scaling)}
    old["rope_scaling"]["type"] = old["rope_scaling"].pop("rope_type")
    short = ids[:10]
    logits, greedy, margin = run(json.loads(json.dumps(new)), state, ids, short)
    again, same, _ = run(json.loads(json.dumps(old)), state, ids, short)
    assert torch.equal(logits, again) and greedy == same, name
    assert margin > 1e-3, (name, margin)
    cases[name] = {"configs": [new, old], "logits": logits[ROWS].tolist(), "greedy": greedy}
    print(name, greedy, round(margin, 4))
assert len({json.dumps(case["logits"]) for case in cases.values()}) == len(cases)
OUT.mkdir(parents=True, exist_ok=True)
save_file(state, OUT / "model.safetensors")
told = {"input_ids": ids, "short": ids[:10], "rows": ROWS, "cases": cases}
(OUT / "cases.json").write_text(json.dumps(told) + "\n")
