#!/usr/bin/env python3
"""Checks that a checkpoint written by `sq-llava export` computes the same in transformers.

Both layouts: of `--layout llava-hf`, transformers' own model, processor and chat template are
loaded from the directory; of the original layout, which transformers has no class for, the parts
(LLaMA, CLIP's tower, the projector) are built and joined as LLaVA joins them. Compared are the
prompt's ids, the pixels (a step of eight bits apart at most), and then, on the same pixels, the
logits of the whole prompt and the ids of a greedy answer:

    python scripts/check_export.py --model DIR --image FILE [--image FILE …] [--question TEXT]

Needs torch, transformers, safetensors and pillow. Exit status: 0 equal, 1 not equal, 2 cannot run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def refuse(reason):
    """Ends with one line on standard error."""
    print(f"check_export: {reason}", file=sys.stderr)
    sys.exit(2)


try:
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import (
        AutoModelForImageTextToText,
        AutoProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )
except ImportError as error:
    refuse(f"{error}; install torch, transformers, safetensors and pillow")

PLACEHOLDER = -200
TOWER = "model.vision_tower.vision_tower.vision_model."


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the exported directory")
    parser.add_argument("--image", type=Path, action="append", required=True, help="a picture; several times for several runs")
    parser.add_argument("--question", action="append", help="a question about each picture")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--command", default="target/release/sq-llava", help="the sq-llava binary")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative error of the logits")
    return parser.parse_args()


def ours(args, *words):
    """What a command of ours prints, as JSON."""
    command = [args.command, words[0], "--model", args.model, "--dtype", "f32", "--device", "cpu", *words[1:]]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        refuse(f"{args.command} does not exist; build it or name it with --command")
    if done.returncode != 0:
        refuse(done.stderr.strip())
    return json.loads(done.stdout)


def tensor(said):
    return torch.tensor(said["values"]).reshape(said["shape"])


def collapse(ids, image):
    """Ids with one placeholder of ours for each run of the processor's."""
    out = []
    for token in ids:
        if token != image:
            out.append(token)
        elif not out or out[-1] != PLACEHOLDER:
            out.append(PLACEHOLDER)
    return out


class LlavaHf:
    """transformers' own classes on the directory."""

    def __init__(self, directory):
        self.processor = AutoProcessor.from_pretrained(directory)
        self.model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        self.image = self.model.config.image_token_id
        rows = self.model.get_input_embeddings().weight.shape[0]
        if not 0 <= self.image < rows:
            refuse(f"image_token_index {self.image} is not a row of the embedding, which has {rows}")

    def prepare(self, picture, question):
        """Ids (as ours) and pixels of a prompt, by chat template and processor."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        self.inputs = self.processor(images=picture, text=text, return_tensors="pt")
        # Of a picture of any shape all tiles.
        pixels = self.inputs["pixel_values"].flatten(0, -4)
        return collapse(self.inputs["input_ids"][0].tolist(), self.image), pixels

    def logits(self, _ids, pixels):
        return self.model(**self.with_pixels(pixels)).logits[0]

    def with_pixels(self, pixels):
        return {**self.inputs, "pixel_values": pixels.reshape(self.inputs["pixel_values"].shape)}

    def greedy(self, _ids, pixels, count):
        inputs = self.with_pixels(pixels)
        out = self.model.generate(**inputs, max_new_tokens=count, do_sample=False)
        return out[0, self.inputs["input_ids"].shape[1] :].tolist()


class Original:
    """LLaVA's layout in parts; pixels and ids are ours, for transformers has no processor of it."""

    def __init__(self, directory):
        self.config = json.loads((directory / "config.json").read_text())
        files = sorted(directory.glob("*.safetensors"))
        tensors = {k: v.float() for file in files for k, v in load_file(file).items()}
        self.llm = LlamaForCausalLM(known(LlamaConfig, self.config)).eval()
        names = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
        kept = {k: v for k, v in tensors.items() if k.startswith(names)}
        kept.setdefault("lm_head.weight", kept["model.embed_tokens.weight"])
        self.llm.load_state_dict(kept)
        tower = CLIPVisionModel(known(CLIPVisionConfig, self.config["vision_config"]))
        # The wrapper of older transformers holds the tower; in newer ones it is the tower.
        self.tower = getattr(tower, "vision_model", tower).eval()
        kept = {k[len(TOWER) :]: v for k, v in tensors.items() if k.startswith(TOWER)}
        missing = self.tower.load_state_dict(kept, strict=False).missing_keys
        if [key for key in missing if "position_ids" not in key]:
            refuse(f"the tower lacks {missing[0]}")
        self.linears = []
        start = "model.mm_projector."
        while f"{start}{2 * len(self.linears)}.weight" in tensors:
            n = 2 * len(self.linears)
            self.linears.append((tensors[f"{start}{n}.weight"], tensors[f"{start}{n}.bias"]))
        if not self.linears:
            refuse("only a projector of kind mlpNx_gelu is built here")

    def prepare(self, _picture, _question):
        return None, None

    def features(self, pixels):
        states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        out = states[self.config.get("mm_vision_select_layer", -2)]
        if self.config.get("mm_vision_select_feature", "patch") == "patch":
            out = out[:, 1:]
        for i, (weight, bias) in enumerate(self.linears):
            out = torch.nn.functional.linear(out if i == 0 else torch.nn.functional.gelu(out), weight, bias)
        return out[0]

    def embeds(self, ids, pixels):
        parts = []
        for token in ids:
            row = self.features(pixels) if token == PLACEHOLDER else self.llm.model.embed_tokens(torch.tensor([token]))
            parts.append(row)
        return torch.cat(parts)[None]

    def logits(self, ids, pixels):
        return self.llm(inputs_embeds=self.embeds(ids, pixels)).logits[0]

    def greedy(self, ids, pixels, count):
        out, embeds, end = [], self.embeds(ids, pixels), self.config.get("eos_token_id")
        ends = end if isinstance(end, list) else [end]
        for _ in range(count):
            token = self.llm(inputs_embeds=embeds).logits[0, -1].argmax()
            out.append(token.item())
            if out[-1] in ends:
                break
            embeds = torch.cat([embeds, self.llm.model.embed_tokens(token[None, None])], 1)
        return out


def known(kind, given):
    """A transformers configuration from the keys that it knows."""
    names = {*kind().to_dict(), "rope_theta", "rope_scaling"} - {"architectures", "model_type"}
    return kind(**{k: v for k, v in given.items() if k in names})


def check(what, good, detail=""):
    print(f"{'equal' if good else 'NOT EQUAL'}: {what}{detail}")
    return good


def compare(args, reference, image, question):
    said = ours(args, "ask", "--json", "--max-new-tokens", args.max_new_tokens, image, question)
    ids, pixels = reference.prepare(Image.open(image).convert("RGB"), question)
    good = True
    if ids is not None:
        good &= check("ids of the prompt", ids == said["input_ids"], f" ({len(said['input_ids'])})")
        ids = said["input_ids"]
    else:
        ids = said["input_ids"]
    found = ours(args, "logits", f"--ids={','.join(map(str, ids))}", "--image", image)
    mine = tensor(found["pixel_values"])
    if pixels is not None:
        std = torch.tensor(reference.processor.image_processor.image_std).reshape(1, 3, 1, 1)
        steps = ((mine - pixels).abs() * std * 255).max().item()
        good &= check("pixels", steps <= 1.01, f" (at most {steps:.2f} of 255 apart)")
    with torch.no_grad():
        logits = reference.logits(ids, mine)
        error = ((tensor(found["logits"]) - logits).norm() / logits.norm()).item()
        good &= check("logits", error <= args.tolerance, f" (relative error {error:.1e})")
        greedy = reference.greedy(ids, mine, args.max_new_tokens)
    wanted = said["output_ids"]
    ended = len(greedy) == len(wanted) + 1 and said["finish"] == "stop"
    good &= check("greedy ids", greedy == wanted or (ended and greedy[:-1] == wanted), f" ({len(wanted)})")
    return good


def main():
    args = arguments()
    path = args.model / "config.json"
    if not path.is_file():
        refuse(f"{path} does not exist")
    nested = "text_config" in json.loads(path.read_text())
    reference = LlavaHf(args.model) if nested else Original(args.model)
    print("layout:", "llava-hf" if nested else "original")
    results = []
    for image in args.image:
        for question in args.question or ["What is in this picture?"]:
            print(f"{image.name}: {question}")
            results.append(compare(args, reference, image, question))
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
