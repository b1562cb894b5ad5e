"""Loss and gradients of LLaVA-NeXT's connector, by transformers, for the tests of the training step.

    python scripts/anyres_gradients.py golden/data/families/vlm_next_clip_llama golden/data/l_anyres_gradients

Writes NAME.safetensors and NAME.json: two samples with pictures of different shapes, of which the last
tokens are learnt, and the gradients of image_newline and of the projector.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

LEARNT = 6


def main(case: Path, out: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(case / "model", dtype=torch.float32)
    model.eval()
    stored = load_file(case / "outputs.safetensors")
    prompts = json.loads((case / "outputs.json").read_text())["prompts"]
    prompts = [prompt for prompt in prompts if len(prompt["images"]) == 1][:2]
    tensors, samples = {}, []
    total = None
    for prompt in prompts:
        name = prompt["name"]
        ids = stored[f"{name}.input_ids"]
        labels = torch.full_like(ids, -100)
        labels[0, -LEARNT:] = ids[0, -LEARNT:]
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=stored[f"{name}.pixel_values"],
            image_sizes=stored[f"{name}.image_sizes"],
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits[0, :-1].double(), labels[0, 1:], ignore_index=-100, reduction="sum"
        )
        total = loss if total is None else total + loss
        samples.append({"name": name, "image": prompt["images"][0], "learnt": LEARNT})
        tensors[f"{name}.input_ids"] = ids[0].contiguous()
    loss = total / (LEARNT * len(samples))
    loss.backward()
    core = model.model
    tensors["grad.image_newline"] = core.image_newline.grad
    for name, parameter in core.multi_modal_projector.named_parameters():
        tensors[f"grad.multi_modal_projector.{name}"] = parameter.grad
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / f"{case.name}.safetensors")
    facts = {"case": case.name, "samples": samples, "loss": loss.item()}
    (out / f"{case.name}.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
