"""Makes the reference of packed rows: attention of grouped queries over rows in which samples stand
one behind the other, as torch computes it in float64 with a block-diagonal mask, and its gradients;
with windows and soft limits too.

    python scripts/packing_fixtures.py        # from the repository's root

Needs torch and safetensors.
"""

import json
import sys
from pathlib import Path

try:
    import torch
    from safetensors.torch import save_file
except ImportError as error:
    print(f"packing_fixtures: {error}; install torch and safetensors", file=sys.stderr)
    sys.exit(2)

OUT = Path("sq-llava-model/tests/fixtures/packing")
HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 4, 83
# One sample of a single token, ends inside and at blocks of 64 queries, padding behind the first row.
LENGTHS = [[5, 1, 40, 30], [64, 19]]
CASES = {
    "causal": {"window": None, "softcap": None, "scale": None},
    "window": {"window": 9, "softcap": None, "scale": None},
    "softcap": {"window": None, "softcap": 1.5, "scale": 0.31},
    "window_softcap": {"window": 40, "softcap": 0.4, "scale": 0.31},
}


def visible(lengths, window):
    """True where a query (row) sees a key (column)."""
    padding = TOKENS - sum(lengths)
    blocks = [torch.ones(n, n).tril() for n in lengths] + [torch.eye(padding)] * (padding > 0)
    seen = torch.block_diag(*blocks) > 0
    if window is not None:
        seen &= torch.ones(TOKENS, TOKENS).triu(1 - window) > 0
    return seen


def attend(q, k, v, case):
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * (case["scale"] or DIM**-0.5)
    if case["softcap"]:
        scores = case["softcap"] * torch.tanh(scores / case["softcap"])
    seen = torch.stack([visible(lengths, case["window"]) for lengths in LENGTHS])[:, None]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


torch.manual_seed(0)
OUT.mkdir(parents=True, exist_ok=True)
rows = len(LENGTHS)
shapes = {"query": HEADS, "key": KV_HEADS, "value": KV_HEADS, "grad": HEADS}
tensors = {name: 2 * torch.randn(rows, heads, TOKENS, DIM) for name, heads in shapes.items()}
for row, lengths in enumerate(LENGTHS):
    # Nothing is learnt from padding.
    tensors["grad"][row, :, sum(lengths):] = 0
for name, case in CASES.items():
    q, k, v = (tensors[key].double().requires_grad_() for key in ("query", "key", "value"))
    out = attend(q, k, v, case)
    out.backward(tensors["grad"].double())
    for row, lengths in enumerate(LENGTHS):
        out.data[row, :, sum(lengths):] = 0
    kept = {"out": out.detach(), "query": q.grad, "key": k.grad, "value": v.grad}
    tensors |= {f"{name}.{key}": value.float().contiguous() for key, value in kept.items()}
save_file(tensors, OUT / "attention.safetensors")
told = {"lengths": LENGTHS, "cases": CASES}
(OUT / "attention.json").write_text(json.dumps(told, indent=1) + "\n")
