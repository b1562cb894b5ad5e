"""Makes the PEFT fixtures of the tests on the tiny LLaVA of golden/data, with what PEFT and
transformers compute:

- `options/`: an adapter whose options change its numbers (patterns, rsLoRA, chosen layers);
- `published/`: the directory that the released training of SQ-LLaVA leaves (its `train.py`), with
  the vision adapters in `Vit-lora/` and again among those of the LLM.

    python scripts/peft_fixtures.py        # from the repository's root

Needs torch, transformers, peft, numpy and safetensors.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

BASE = Path("golden/data/a_llava_gqa/orig")
OUT = Path("sq-llava-model/tests/fixtures/peft")
TOWER = "model.vision_tower.vision_tower."
IDS = [1, 5, 9, 120]


def stored():
    tensors = {}
    for path in sorted(BASE.glob("*.safetensors")):
        tensors.update(load_file(path))
    return {name: torch.tensor(values) for name, values in tensors.items()}


def llama():
    keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps",
            "rope_theta"]
    config = json.loads((BASE / "config.json").read_text())
    model = LlamaForCausalLM(LlamaConfig(**{key: config[key] for key in keys},
                                         tie_word_embeddings=False))
    weights = {name: values for name, values in stored().items()
               if not name.startswith((TOWER, "model.mm_projector."))}
    model.load_state_dict(weights)
    return model.float().eval()


class CLIPVisionTower(torch.nn.Module):
    """As in the released code: the tower of the tower."""

    def __init__(self):
        super().__init__()
        config = json.loads((BASE / "vision_config.json").read_text())
        self.vision_tower = CLIPVisionModel(CLIPVisionConfig(**config))
        names = self.vision_tower.state_dict()
        weights = {name[len(TOWER):]: values for name, values in stored().items()
                   if name.startswith(TOWER)}
        # transformers 5 leaves the inner name out.
        if not any(name.startswith("vision_model.") for name in names):
            weights = {name.removeprefix("vision_model."): v for name, v in weights.items()}
        self.vision_tower.load_state_dict(weights, strict=False)
        self.float().eval()

    def forward(self, pixels):
        return self.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]


def draw(model):
    """Small factors that f16 holds exactly."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn_like(parameter) * 0.1).half().float()


def halves(directory):
    """Rewrites the saved factors in f16, which halves the fixtures, under the names of the
    transformers of that time."""
    def name_of(name):
        return name.replace("vision_tower.encoder.", "vision_tower.vision_model.encoder.")
    for path in directory.rglob("adapter_model.*"):
        if path.suffix == ".bin":
            factors = torch.load(path, weights_only=True)
            torch.save({name_of(name): v.half() for name, v in factors.items()}, path)
        else:
            factors = {name: torch.tensor(v).half() for name, v in load_file(path).items()}
            save_file(factors, path, metadata={"format": "pt"})
    for path in directory.rglob("README.md"):
        path.unlink()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def options():
    config = LoraConfig(
        r=2, lora_alpha=4, lora_dropout=0.3, use_rslora=True, task_type="CAUSAL_LM",
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[0, 2], exclude_modules=["layers.2.mlp.down_proj"],
        # The first that fits counts; PEFT writes them in alphabetical order.
        rank_pattern={"layers.0.self_attn.q_proj": 3, "q_proj": 1},
        alpha_pattern={"mlp.down_proj": 7, "model.layers.2.self_attn.q_proj": 5},
        init_lora_weights="gaussian",
    )
    model = get_peft_model(llama(), config)
    draw(model)
    out = OUT / "options"
    model.save_pretrained(out)
    halves(out)
    reloaded = PeftModel.from_pretrained(llama(), out).eval()
    save_file({"input_ids": torch.tensor(IDS), "logits": logits(reloaded)},
              out / "outputs.safetensors")


def published():
    def factors(model):
        return {name: v for name, v in model.named_parameters() if "lora_" in name}

    llm = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM",
                     target_modules=["q_proj", "down_proj"])
    model = get_peft_model(llama(), llm)
    tower = CLIPVisionTower()
    model.get_base_model().model.vision_tower = tower
    vit = LoraConfig(r=1, lora_alpha=2, lora_dropout=0.2, bias="none",
                     target_modules=["q_proj", "fc2"])
    vision = get_peft_model(tower, vit)
    draw(model)
    model.eval()
    out = OUT / "published"
    model.save_pretrained(out, state_dict=factors(model), safe_serialization=False)
    vision.save_pretrained(out / "Vit-lora", state_dict=factors(vision),
                           safe_serialization=False)
    halves(out)
    # 3 × 56 × 56 numbers that need no file.
    pixels = (torch.arange(3 * 56 * 56) % 97).float() / 97 - 0.5
    with torch.no_grad():
        features = vision(pixels.reshape(1, 3, 56, 56))[0]
    save_file({"input_ids": torch.tensor(IDS), "logits": logits(model),
               "features": features.contiguous()}, out / "outputs.safetensors")


torch.manual_seed(20240922)
options()
published()
