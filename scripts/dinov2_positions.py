"""Makes the fixture of DINOv2's positions: what the tiny tower of the reference data makes of pictures
that are larger and smaller than those of its configuration, as transformers computes it.

    python scripts/dinov2_positions.py        # from the repository's root

Needs torch, transformers and safetensors.
"""

import sys
from pathlib import Path

try:
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Model
except ImportError as error:
    print(f"dinov2_positions: {error}; install torch, transformers and safetensors", file=sys.stderr)
    sys.exit(2)

MODEL = Path("golden/data/families/vision_dinov2/model")
OUT = Path("sq-llava-model/tests/fixtures/dinov2_positions.safetensors")

torch.manual_seed(20261127)
torch.set_num_threads(1)
model = Dinov2Model.from_pretrained(MODEL, attn_implementation="eager").eval()
size, patch = model.config.image_size, model.config.patch_size
told = {}
for side in (size - patch, size + 2 * patch):
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        found = model(pixels, output_hidden_states=True)
    told[f"{side}.pixels"] = pixels
    told[f"{side}.hidden_0"] = found.hidden_states[0].contiguous()
    told[f"{side}.last_hidden_state"] = found.last_hidden_state.contiguous()
    print(side, tuple(found.last_hidden_state.shape))
save_file(told, OUT)
