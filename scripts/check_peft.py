#!/usr/bin/env python3
"""Checks that adapters written by `sq-llava train` load in PEFT and compute the same.

Loads the base with transformers and the run's adapters with PEFT, and compares features of the
vision tower and logits of the LLM with those that `sq-llava logits` prints for the same run:

    python scripts/check_peft.py --run RUN --base DIR [--vision DIR] [--image FILE]

Needs torch, transformers, peft and safetensors. Exit status: 0 equal, 1 not equal, 2 cannot run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def refuse(reason):
    """Ends with one line on standard error."""
    print(f"check_peft: {reason}", file=sys.stderr)
    sys.exit(2)


try:
    import torch
    from peft import PeftModel
    from safetensors import safe_open
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
except ImportError as error:
    refuse(f"{error}; install torch, transformers, peft and safetensors")

# Prefixes of the tower's keys: alone, and inside a LLaVA.
VISION = ["model.vision_tower.vision_tower.vision_model.", "vision_model."]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="run directory of sq-llava train")
    parser.add_argument("--base", type=Path, required=True, help="the LLM or LLaVA it was trained on")
    parser.add_argument("--vision", type=Path, help="the vision tower, unless it is inside the LLaVA")
    parser.add_argument("--image", type=Path, help="a picture; without one only the LLM is compared")
    parser.add_argument("--ids", default="1,-200,5,9,13,40,7,22,60,31", help="token ids, -200 for the picture")
    parser.add_argument("--command", default="target/release/sq-llava", help="the sq-llava binary")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative error")
    return parser.parse_args()


def weights(directory):
    """All tensors of a directory's safetensors files."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        refuse(f"{directory} holds no safetensors files")
    found = {}
    for file in files:
        found.update(load_file(file))
    return found


def config(path, kind):
    """A transformers configuration from the keys of a JSON file that it knows."""
    known = kind().to_dict()
    given = json.loads(path.read_text())
    given = given.get("vision_config", given) if kind is CLIPVisionConfig else given
    chosen = {k: v for k, v in given.items() if (k in known or k == "rope_theta") and k != "architectures"}
    chosen.pop("model_type", None)
    return kind(**chosen)


def fill(model, tensors, where):
    """Loads a state dict; everything but buffers must be there."""
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [key for key in missing if "position_ids" not in key and "inv_freq" not in key]
    if missing:
        refuse(f"{where} lacks {missing[0]} and {len(missing) - 1} more")
    return model.float().eval()


def ours(args, ids, image):
    """What `sq-llava logits` says."""
    command = [args.command, "logits", "--model", args.run, "--base", args.base, "--dtype", "f32",
               "--device", "cpu", f"--ids={','.join(map(str, ids))}"]
    if args.vision:
        command += ["--vision", args.vision]
    if image:
        command += ["--image", image]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        refuse(f"{args.command} does not exist; build it or name it with --command")
    if done.returncode != 0:
        refuse(done.stderr.strip())
    said = json.loads(done.stdout)
    for key, value in said.items():
        if isinstance(value, dict):
            said[key] = torch.tensor(value["values"]).reshape(value["shape"])
    return said


def vision_config_path(args):
    places = [(args.vision or args.base) / name for name in ("vision_config.json", "config.json")]
    return next((path for path in places if path.is_file()), None) or refuse(f"no {places[0]}")


def compare(what, mine, reference, without, tolerance):
    """Prints both errors; whether the first is small."""
    error = ((mine - reference).norm() / reference.norm()).item()
    effect = ((without - reference).norm() / reference.norm()).item()
    print(f"{what}: relative error {error:.2e}; the adapter changes them by {effect:.2e}")
    if effect == 0.0:
        refuse(f"{what}: the adapter does nothing, so nothing was compared")
    return error <= tolerance


class Holder(torch.nn.Module):
    """Gives a module a name, so that the adapter's keys find it."""

    def __init__(self, name, module):
        super().__init__()
        self.add_module(name, module)


def check_vision(args, said):
    adapter = args.run / "Vit-lora"
    if not adapter.is_dir():
        print("vision tower: the run has no adapter for it")
        return True
    if "vision_features" not in said:
        print("vision tower: not compared; give --image")
        return True
    tower = CLIPVisionModel(config(vision_config_path(args), CLIPVisionConfig))
    # The wrapper of older transformers holds the tower; in newer ones it is the tower.
    tower = getattr(tower, "vision_model", tower)
    tensors = weights(args.vision or args.base)
    prefix = next((p for p in VISION if any(key.startswith(p) for key in tensors)), None)
    if prefix is None:
        refuse(f"{args.vision or args.base} holds no CLIP vision tower")
    fill(tower, {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}, "the tower")
    run = json.loads((args.run / "config.json").read_text())
    layer = run.get("mm_vision_select_layer", -2)

    def features():
        states = tower(pixel_values=said["pixel_values"], output_hidden_states=True).hidden_states
        chosen = states[layer]
        return chosen[:, 1:] if run.get("mm_vision_select_feature", "patch") == "patch" else chosen

    with torch.no_grad():
        without = features()
        PeftModel.from_pretrained(Holder("vision_tower", Holder("vision_model", tower)), adapter).eval()
        return compare("vision features", said["vision_features"], features(), without, args.tolerance)


def check_llm(args, ids, said):
    if not (args.run / "adapter_config.json").is_file():
        print("LLM: the run has no adapter for it")
        return True
    llm = LlamaForCausalLM(config(args.base / "config.json", LlamaConfig))
    tensors = weights(args.base)
    names = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    kept = {k: v for k, v in tensors.items() if k.startswith(names)}
    if llm.config.tie_word_embeddings:
        kept["lm_head.weight"] = kept["model.embed_tokens.weight"]
    fill(llm, kept, args.base)
    # Rows of the role tokens are the run's own: they are compared nowhere.
    vocabulary = llm.config.vocab_size
    rows = args.run / "new_tokens.safetensors"
    if rows.is_file():
        with safe_open(rows, "pt") as file:
            vocabulary = min(vocabulary, int(file.metadata()["start"]))
    if max(ids) >= vocabulary:
        refuse(f"--ids must be below {vocabulary}")
    with torch.no_grad():
        parts = []
        for token in ids:
            if token == -200:
                parts.append(said["image_tokens"][0])
            else:
                parts.append(llm.model.embed_tokens(torch.tensor([token])))
        embeds = torch.cat(parts)[None]
        without = llm(inputs_embeds=embeds).logits[0]
        adapted = PeftModel.from_pretrained(llm, args.run).eval()
        reference = adapted(inputs_embeds=embeds).logits[0]
        cut = (t[:, :vocabulary] for t in (said["logits"], reference, without))
        return compare("logits", *cut, args.tolerance)


def main():
    args = arguments()
    ids = [int(token) for token in args.ids.split(",")]
    if args.image is None:
        ids = [token for token in ids if token != -200]
    said = ours(args, ids, args.image)
    equal = [check_vision(args, said), check_llm(args, ids, said)]
    print("equal" if all(equal) else "NOT EQUAL")
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
