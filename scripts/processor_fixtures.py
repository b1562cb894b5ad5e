"""Makes the image processor fixtures of the tests: small pictures and what transformers' image
processors make of them under configurations of every kind that checkpoints have.

    python scripts/processor_fixtures.py        # from the repository's root

Needs numpy, pillow, safetensors and transformers 5.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

OUT = Path("sq-llava-data/tests/fixtures/processor")
CLASSES = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "BitImageProcessor": BitImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
}
CLIP, BIT, LLAVA, SIGLIP = CLASSES
SQUARE = {"height": 9, "width": 9}
CASES = {
    "clip_number": {"image_processor_type": CLIP, "size": 9, "crop_size": 9},
    "clip_edge": {"image_processor_type": CLIP, "size": {"shortest_edge": 12}, "crop_size": SQUARE},
    "clip_exact": {"image_processor_type": CLIP, "size": {"height": 14, "width": 11}, "crop_size": {"height": 10, "width": 9}},
    "clip_crop_larger": {"image_processor_type": CLIP, "size": {"shortest_edge": 6}, "crop_size": {"height": 10, "width": 9}},
    "clip_no_crop": {"image_processor_type": CLIP, "size": SQUARE, "do_center_crop": False},
    "clip_no_resize": {"image_processor_type": CLIP, "do_resize": False, "crop_size": SQUARE},
    "clip_no_normalize": {"image_processor_type": CLIP, "size": 9, "crop_size": 9, "do_normalize": False},
    "clip_no_rescale": {"image_processor_type": CLIP, "size": 9, "crop_size": 9, "do_rescale": False},
    "clip_factor": {"image_processor_type": CLIP, "size": 9, "crop_size": 9, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 0.5]},
    "llava_pad": {"image_processor_type": LLAVA, "size": {"shortest_edge": 9}, "crop_size": SQUARE, "do_pad": True},
    "llava_pad_exact": {"image_processor_type": LLAVA, "size": {"height": 8, "width": 10}, "do_center_crop": False, "do_pad": True},
    "llava_crop": {"image_processor_type": LLAVA, "size": {"shortest_edge": 9}, "crop_size": SQUARE, "do_pad": False},
    "dinov2": {"image_processor_type": BIT, "size": {"shortest_edge": 12}, "crop_size": SQUARE, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "siglip": {"image_processor_type": SIGLIP, "size": SQUARE},
    "lanczos": {"image_processor_type": CLIP, "size": 9, "crop_size": 9, "resample": 1},
    "bilinear": {"image_processor_type": CLIP, "size": 9, "crop_size": 9, "resample": 2},
    "box": {"image_processor_type": CLIP, "size": 9, "crop_size": 9, "resample": 4},
    "hamming": {"image_processor_type": CLIP, "size": 9, "crop_size": 9, "resample": 5},
}


def pictures():
    """Noise, in sizes that every version of Pillow resizes row by row first: version 13 begins with
    the columns of narrow pictures, which rounds elsewhere."""
    rng = np.random.default_rng(8)
    for name, (width, height) in {"wide": (23, 13), "tall": (20, 29), "tiny": (5, 4)}.items():
        yield name, Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, picture in pictures():
        picture.save(OUT / f"{name}.png")
        for (width, height) in [(11, 14), (9, 9)]:
            rows = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
            whole = picture.resize((width, height), Image.Resampling.BICUBIC)
            assert rows.resize((width, height), Image.Resampling.BICUBIC) == whole, name
        for case, config in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                # Read from a file, as people have it.
                (Path(folder) / "preprocessor_config.json").write_text(json.dumps(config))
                processor = CLASSES[config["image_processor_type"]].from_pretrained(folder)
            values = processor(picture, return_tensors="np")["pixel_values"][0]
            tensors[f"{case}.{name}"] = np.ascontiguousarray(values, dtype=np.float32)
    save_file(tensors, OUT / "pixels.safetensors")
    (OUT / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
    print(sum(t.nbytes for t in tensors.values()), "bytes")


if __name__ == "__main__":
    main()
