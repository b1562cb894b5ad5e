#!/usr/bin/env python3
"""Measures how far PyTorch's 16-bit gradients of adapters are from its f32 ones.

Loads the LLM of the golden base in bfloat16 and float16 with the golden adapter in f32, as PEFT
trains it, takes the gradients of one step, and writes for each adapter tensor the relative error
|g16 - g32| / |g32| in the Euclidean norm, and the loss:

    python scripts/half_gradients.py [--data golden/data]

Writes DATA/k_half_gradients/half_gradients.json. Needs torch, transformers, peft and safetensors.
Exit status: 0 written, 2 cannot run.
"""

import argparse
import json
import sys
from pathlib import Path

try:
    import peft
    import torch
    import transformers
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as error:
    print(f"half_gradients: {error}; install torch, transformers, peft and safetensors", file=sys.stderr)
    sys.exit(2)


def model(base, adapter, dtype):
    """The golden LLM in a dtype with its adapter in f32."""
    config = LlamaConfig.from_dict(json.loads((base / "config.json").read_text()) | {"model_type": "llama"})
    config._attn_implementation = "eager"
    llama = LlamaForCausalLM(config)
    weights = {}
    for shard in sorted(base.glob("model-*.safetensors")):
        weights.update(load_file(shard))
    own = {key: weights[key] for key in llama.state_dict() if key in weights}
    missing, _ = llama.load_state_dict(own, strict=False)
    if missing:
        print(f"half_gradients: {base} lacks {missing[0]}", file=sys.stderr)
        sys.exit(2)
    return PeftModel.from_pretrained(llama.to(dtype), adapter, is_trainable=True)


def step(llama, case):
    """Loss and gradients, by the adapter's keys."""
    llama.train()
    loss = llama(input_ids=case["input_ids"], labels=case["labels"]).loss
    loss.backward()
    grads = {
        name.replace(".default.", "."): parameter.grad.float()
        for name, parameter in llama.named_parameters()
        if parameter.requires_grad
    }
    return loss.item(), grads


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("golden/data"))
    data = parser.parse_args().data
    base, adapter = data / "a_llava_gqa/orig", data / "d_lora/llm_adapter"
    case = load_file(data / "d_lora/llm_step.safetensors")
    _, exact = step(model(base, adapter, torch.float32), case)
    for name, grad in exact.items():
        golden = case["grad." + name]
        if not torch.allclose(grad, golden, rtol=1e-3, atol=1e-6):
            print(f"half_gradients: {name} is not the golden gradient in f32", file=sys.stderr)
            sys.exit(2)
    out = {"versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)}}
    for dtype in (torch.bfloat16, torch.float16):
        loss, grads = step(model(base, adapter, dtype), case)
        errors = {
            name: float((grad - exact[name]).norm() / exact[name].norm())
            for name, grad in sorted(grads.items())
        }
        out[str(dtype).removeprefix("torch.")] = {
            "loss": loss,
            "relative_error": {name: float(f"{error:.3g}") for name, error in errors.items()},
        }
    target = data / "k_half_gradients/half_gradients.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(out, indent=1) + "\n")
    print(target)


main()
