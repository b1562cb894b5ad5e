"""References for masks: regions by pycocotools, the loss and its gradients by PyTorch's autograd.

    python scripts/mask_fixtures.py coco sq-llava-data/tests/fixtures/masks
    python scripts/mask_fixtures.py loss sq-llava-train/tests/fixtures/masks

`coco` writes annotations of a 37x23 picture as polygons, run lengths and packed run lengths (NAME.json),
and what pycocotools decodes them to, painted the smaller over the larger (NAME.labels.png, grey); and one
label map as PNGs of several kinds with its values. Needs numpy, pycocotools and Pillow.
`loss` writes NAME.safetensors: both prototype extractors' weights, tokens, labels, the loss and the
gradients of weights and tokens. Needs torch and safetensors.
"""

import json
import sys
from pathlib import Path

HEIGHT, WIDTH = 23, 37

POLYGONS = {
    "triangle": [[3.2, 2.1, 20.7, 4.4, 9.5, 18.9]],
    "two_parts": [[22.0, 1.0, 30.0, 1.0, 30.0, 9.0, 22.0, 9.0], [25.5, 12.25, 33.3, 20.75, 24.1, 19.6, 26.0, 16.0]],
    "over_the_edge": [[28.0, 14.0, 41.5, 15.5, 39.0, 26.0, 30.0, 22.9]],
    "thin": [[0.0, 20.0, 36.9, 20.4, 36.9, 20.9, 0.0, 21.3]],
    "bow": [[12.0, 6.0, 20.0, 14.0, 20.0, 6.0, 12.0, 14.0]],
    "inside_the_triangle": [[8.0, 5.0, 12.0, 5.0, 12.0, 9.0, 8.0, 9.0, 8.0, 9.0]],
}


def painted(masks):
    """Numbers from 1 on, the smaller over the larger, of equal ones the first."""
    import numpy as np

    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    order = sorted(range(len(masks)), key=lambda i: (-int(masks[i].sum()), -i))
    for i in order:
        labels[masks[i] > 0] = i + 1
    return labels


def coco(out: Path) -> None:
    import numpy as np
    from PIL import Image
    from pycocotools import mask as api

    def save(name, labels):
        Image.fromarray(labels.astype(np.uint8)).save(out / f"{name}.labels.png")

    out.mkdir(parents=True, exist_ok=True)
    packed = [api.merge(api.frPyObjects(polygons, HEIGHT, WIDTH)) for polygons in POLYGONS.values()]
    masks = [api.decode(one) for one in packed]
    annotations = [
        {"id": 100 + i, "segmentation": polygons, "iscrowd": 0} for i, polygons in enumerate(POLYGONS.values())
    ]
    whole = {"images": [{"id": 7, "height": HEIGHT, "width": WIDTH}], "annotations": annotations}
    (out / "polygons.json").write_text(json.dumps(whole) + "\n")
    save("polygons", painted(masks))

    # Discs, a comb, noise, the whole picture, one pixel at each end.
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    disc = lambda y, x, r: ((rows - y) ** 2 + (columns - x) ** 2 <= r * r).astype(np.uint8)
    noise = (np.random.default_rng(3).random((HEIGHT, WIDTH)) < 0.4).astype(np.uint8)
    ends = np.zeros((HEIGHT, WIDTH), np.uint8)
    ends[0, 0] = ends[-1, -1] = 1
    comb = ((columns % 6 < 3) & (rows > 8)).astype(np.uint8)
    masks = [disc(8, 9, 6), disc(12, 25, 9), comb, noise * disc(12, 18, 12), np.ones_like(ends), ends]
    packed = [api.encode(np.asfortranarray(mask)) for mask in masks]
    text = [{"size": one["size"], "counts": one["counts"].decode()} for one in packed]
    sam = [{"segmentation": one, "area": int(mask.sum())} for one, mask in zip(text, masks)]
    (out / "packed.json").write_text(json.dumps(sam) + "\n")
    save("packed", painted([api.decode(one) for one in packed]))

    def counts(mask):
        flat = mask.flatten(order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
        return ([0] if flat[0] else []) + lengths

    plain = [{"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts(mask)}} for mask in masks]
    for one, mask in zip(plain, masks):
        lengths = api.frPyObjects(one["segmentation"], HEIGHT, WIDTH)
        assert (api.decode(lengths) == mask).all()
    plain[3]["iscrowd"] = 1
    (out / "plain.json").write_text(json.dumps({"annotations": plain}) + "\n")
    masks[3] = masks[3] * 0
    save("plain", painted(masks))

    labels = (rows // 6 * 4 + columns // 10).astype(np.uint16)
    Image.fromarray(labels.astype(np.uint8)).save(out / "grey8.png")
    Image.fromarray(labels * 300).save(out / "grey16.png")
    palette = Image.fromarray(labels.astype(np.uint8)).convert("P")
    palette.putdata(labels.flatten().tolist())
    # Colours that are not in the order of the numbers.
    palette.putpalette([(37 * i + c * 11) % 256 for i in range(256) for c in range(3)])
    palette.save(out / "palette.png", bits=4)
    Image.fromarray((labels % 2).astype(bool)).save(out / "one_bit.png")
    facts = {"grey8": labels.tolist(), "grey16": (labels * 300).tolist()}
    facts["palette"], facts["one_bit"] = labels.tolist(), (labels % 2).tolist()
    (out / "label_maps.json").write_text(json.dumps(facts) + "\n")


EPSILON = 1e-6


def pairs_loss(assignment, labels):
    """assignment [K, tokens]; half the mean of -log s over pairs of one mask, half that of
    -log(1 - s) over pairs of two, s the probability that both tokens draw the same prototype."""
    import torch

    places = [i for i, label in enumerate(labels) if label]
    p = assignment[:, places]
    p = p / p.sum(0, keepdim=True)
    pull, push = [], []
    for i in range(len(places)):
        for j in range(i):
            s = (p[:, i] * p[:, j]).sum()
            if labels[places[i]] == labels[places[j]]:
                pull.append(-torch.log(s + EPSILON))
            else:
                push.append(-torch.log(1 - s + EPSILON))
    mean = lambda values: sum(values) / len(values) if values else 0.0
    return 0.5 * mean(pull) + 0.5 * mean(push)


def paper(p, z, over, steps=2):
    """The assignment of the last step, [batch, K, tokens]."""
    import torch

    linear = lambda name, x: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    keys, values = linear("k", z), linear("v", z)
    centers = p["centers"].expand(z.shape[0], -1, -1)
    for _ in range(steps):
        m = torch.softmax(linear("q", centers) @ keys.transpose(1, 2), dim=over)
        centers = m @ values
    return m


def released(p, x, k, steps=2):
    import torch
    import torch.nn.functional as F

    linear = lambda name, x: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    features = linear("f", x)
    values = F.normalize(linear("v", x).transpose(1, 2), dim=-1)
    centers = F.adaptive_avg_pool1d(x.transpose(1, 2), k).transpose(1, 2)
    for _ in range(steps):
        m = torch.softmax(F.normalize(linear("c", centers), dim=-1) @ values, dim=1)
        centers = m @ features
    return m


def loss(out: Path) -> None:
    import torch
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    batch, tokens, width, k = 3, 13, 6, 4
    labels = torch.randint(0, 4, (batch, tokens), generator=torch.Generator().manual_seed(5))
    labels[1] = torch.where(labels[1] > 0, 2, 0)  # one mask alone
    names = {"paper": ["q", "k", "v", "z"], "tokens": ["q", "k", "v", "z"], "released": ["c", "v", "f"]}
    for seed, (name, linears) in enumerate(names.items()):
        draw = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
        p = {}
        for one in linears:
            p[f"{one}.weight"], p[f"{one}.bias"] = 0.5 * normal(width, width), 0.1 * normal(width)
        if name != "released":
            p["centers"] = normal(k, width)
        z = normal(batch, tokens, width)
        tensors = {f"param.{key}": value.float() for key, value in p.items()}
        tensors |= {"tokens": z.float(), "labels": labels}
        for value in [*p.values(), z]:
            value.requires_grad_()
        if name == "released":
            m = released(p, z, k)
        else:
            m = paper(p, z, 1 if name == "paper" else 2)
        each = torch.stack([pairs_loss(m[i], labels[i].tolist()) for i in range(batch)])
        # As many samples show the pictures, of the four with masks in the step.
        total = (each * torch.tensor([1.0, 2.0, 1.0])).sum() / 4 * 0.3
        total.backward()
        tensors |= {"losses": each.detach().float(), "grad.tokens": z.grad.float()}
        for key, value in p.items():
            if value.grad is not None:
                tensors[f"grad.{key}"] = value.grad.float()
        save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"{name}.safetensors")


if __name__ == "__main__":
    {"coco": coco, "loss": loss}[sys.argv[1]](Path(sys.argv[2]))
