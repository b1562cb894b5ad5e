"""Makes the reference of the optimizer's tests: the adapters of tiny models of golden/data/families
after steps of torch's AdamW on peft's parameters, with gradients clipped as transformers' Trainer
clips them. Kept are the last layer's factors after the first and the third step.

    python scripts/adamw_fixtures.py        # from the repository's root

Needs torch, transformers, peft and safetensors.
"""

import json
import sys
from pathlib import Path

try:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"adamw_fixtures: {error}; install torch, transformers, peft and safetensors", file=sys.stderr)
    sys.exit(2)

FAMILIES = Path("golden/data/families")
OUT = Path("sq-llava-train/tests/fixtures/adamw")
CASES = ["llm_qwen2_tied", "llm_qwen3", "llm_gemma2", "llm_phi3", "llm_phi3_longrope"]
SETTINGS = {"lr": 5e-3, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}


def steps(case):
    """Losses and norms of three steps, and the last layer's factors after the first and third."""
    base = AutoModelForCausalLM.from_pretrained(case / "model", dtype=torch.float32,
                                                attn_implementation="eager")
    model = PeftModel.from_pretrained(base, case / "lora_adapter", is_trainable=True)
    # No dropout in these adapters; the models have none.
    model.eval()
    batch = load_file(case / "outputs.safetensors")
    ids, mask, labels = (batch["lora_" + key] for key in ["input_ids", "attention_mask", "labels"])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=SETTINGS["lr"], betas=SETTINGS["betas"],
                                  eps=SETTINGS["eps"], weight_decay=SETTINGS["weight_decay"])
    last = f".layers.{base.config.num_hidden_layers - 1}."
    losses, norms, kept = [], [], {}
    for step in range(1, 4):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), SETTINGS["clip_norm"])))
        losses.append(float(loss))
        optimizer.step()
        optimizer.zero_grad()
        if step in (1, 3):
            kept |= {f"after{step}.{name.replace('.default', '')}": p.detach().clone()
                     for name, p in trained.items() if last in name}
    return losses, norms, kept


torch.set_num_threads(1)
OUT.mkdir(parents=True, exist_ok=True)
for name in CASES:
    losses, norms, kept = steps(FAMILIES / name)
    save_file(kept, OUT / f"{name}.safetensors")
    told = SETTINGS | {"losses": losses, "norms": norms}
    (OUT / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
    print(name, losses, norms, len(kept))
