"""Writes the PyTorch files of this folder; their values are also in expected.safetensors (f32)."""
import json
import os
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
h, m, v = 8, 12, 16
config = {
    "model_type": "llama", "hidden_size": h, "intermediate_size": m, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": v, "rms_norm_eps": 1e-5,
}
layer = "model.layers.0."
big = torch.randn(3 * h, h)
state = {
    "model.embed_tokens.weight": torch.randn(v, h),
    "model.norm.weight": torch.randn(h),
    "lm_head.weight": torch.nn.Parameter(torch.randn(v, h)),
    # A view with strides, and one with an offset into a larger storage.
    layer + "self_attn.q_proj.weight": torch.randn(h, h).t(),
    layer + "self_attn.k_proj.weight": big[h:2 * h],
    layer + "self_attn.v_proj.weight": torch.randn(h, h).half(),
    layer + "self_attn.o_proj.weight": torch.randn(h, h).bfloat16(),
    layer + "mlp.gate_proj.weight": torch.randn(m, h).double(),
    layer + "mlp.up_proj.weight": torch.randn(m, h),
    layer + "mlp.down_proj.weight": torch.randn(m, h).t(),
    layer + "input_layernorm.weight": torch.randn(h),
    layer + "post_attention_layernorm.weight": torch.randn(h),
    layer + "self_attn.rotary_emb.inv_freq": torch.randn(2),
}
for folder in ["shards", "legacy"]:
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config, f, indent=1)
names = list(state)
shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
for file, keys in shards.items():
    torch.save({k: state[k] for k in keys}, f"shards/{file}")
index = {"metadata": {}, "weight_map": {k: file for file, keys in shards.items() for k in keys}}
with open("shards/pytorch_model.bin.index.json", "w") as f:
    json.dump(index, f, indent=1)
torch.save(state, "legacy/pytorch_model.bin", _use_new_zipfile_serialization=False)
expected = {k: t.detach().float().contiguous() for k, t in state.items() if "inv_freq" not in k}
save_file(expected, "expected.safetensors")
