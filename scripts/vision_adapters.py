#!/usr/bin/env python3
"""Makes golden/data/families/lora_llava_*: tiny LLaVAs over DINOv2 and SigLIP with adapters of peft.

    python scripts/vision_adapters.py golden/data/families

Each holds the model (`save_pretrained`), the adapter, and the reference: logits without and with the
adapter, the mean loss over the labels, and the adapter's gradients. torch 2.15, transformers 5.24,
peft 0.21; all weights are exact in bf16.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

IMAGE = 90  # the placeholder's id


def draw(model, generator):
    """Weights that all matter: norms and biases that are not one and zero."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            one = ("norm" in name and name.endswith("weight")) or "lambda1" in name
            p.copy_(float(one) + 0.3 * noise)
        elif p.ndim == 3:
            p.copy_(0.5 * noise)
        else:
            fan_in = p.shape[-1] if p.ndim == 2 else p[0].numel()
            p.copy_(1.2 * noise / fan_in**0.5)
        p.copy_(p.bfloat16().float())


def make(out, vision, layer, strategy, targets, tokens, seed):
    torch.manual_seed(seed)
    text = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, max_position_embeddings=128, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=tokens,
        vision_feature_layer=layer, vision_feature_select_strategy=strategy,
    )
    model = LlavaForConditionalGeneration(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        draw(model, generator)
    model.save_pretrained(out / "model")

    side = vision.image_size
    pixels = torch.randn(2, 3, side, side, generator=generator)
    words = torch.randint(3, IMAGE, (1, 40), generator=generator)[0].tolist()
    picture = [IMAGE] * tokens
    ids = torch.tensor([[1] + words[:6] + picture + words[6:14] + picture + words[14:30]])
    labels = ids.clone()
    labels[ids == IMAGE] = -100
    labels[:, :8] = -100
    tensors = {"pixel_values": pixels, "input_ids": ids, "labels": labels}
    with torch.no_grad():
        tensors["logits"] = model(input_ids=ids, pixel_values=pixels).logits[0]

    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.copy_((0.15 * torch.randn(p.shape, generator=generator)).bfloat16().float())
    output = adapted(input_ids=ids, pixel_values=pixels, labels=labels)
    output.loss.backward()
    tensors["lora_logits"] = output.logits[0].detach()
    for name, p in adapted.named_parameters():
        if "lora_" in name and p.grad is not None:
            tensors["lora_grad." + name.replace(".default", "")] = p.grad
    adapted.save_pretrained(out / "lora_adapter")
    (out / "lora_adapter/README.md").unlink(missing_ok=True)
    path = out / "lora_adapter/adapter_config.json"
    said = json.loads(path.read_text())
    said["base_model_name_or_path"] = None
    path.write_text(json.dumps(said, indent=1))
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / "outputs.safetensors")
    about = {
        "kind": "vlm_lora", "vision": vision.model_type, "text": "llama", "image_tokens": tokens,
        "image_token_id": IMAGE, "loss": output.loss.item(),
        "made_with": "transformers 5.24, peft 0.21, f32",
    }
    (out / "outputs.json").write_text(json.dumps(about, indent=1))


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    dinov2 = Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=3, image_size=42, patch_size=14,
        mlp_ratio=2, use_swiglu_ffn=True, layerscale_value=0.8,
    )
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    make(folder / "lora_llava_dinov2", dinov2, [-1, 2], "default", linears, 9, 7)
    siglip = SiglipVisionConfig(
        hidden_size=30, intermediate_size=44, num_hidden_layers=3, num_attention_heads=3,
        image_size=38, patch_size=12, vision_use_head=False,
    )
    linears = ["q_proj", "v_proj", "out_proj", "fc1", "fc2", "o_proj", "down_proj"]
    make(folder / "lora_llava_siglip", siglip, -1, "full", linears, 9, 8)


if __name__ == "__main__":
    main()
