#!/usr/bin/env python3
"""Opens GGUF files as the `gguf` package does, and compares what llama.cpp computes of one.

    python scripts/check_gguf.py FILE.gguf [FILE.gguf …]
    python scripts/check_gguf.py LLM.gguf --outputs outputs.safetensors

The first prints architecture, types and fields, and dequantises every tensor. The second also
evaluates `input_ids` of the reference with llama.cpp's library and compares `logits`, row by row.

Needs gguf and numpy; to compare also safetensors, and llama-cpp-python (LLAMA_CPP_LIB_PATH names the
folder of a libllama.so that was built elsewhere). Exit status: 0 equal, 1 not equal, 2 cannot run.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path


def refuse(reason):
    """Ends with one line on standard error."""
    print(f"check_gguf: {reason}", file=sys.stderr)
    sys.exit(2)


try:
    import gguf
    import numpy as np
except ImportError as error:
    refuse(f"{error}; install gguf and numpy")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--outputs", type=Path, help="reference with input_ids and logits")
    parser.add_argument("--tokens", type=int, help="compare the first tokens only, as of an export with --context")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest relative error of the logits")
    return parser.parse_args()


def look_over(path):
    """Whether every tensor of a file can be read and is finite."""
    reader = gguf.GGUFReader(str(path))
    field = reader.get_field("general.architecture")
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    shown = ", ".join(f"{count} {name}" for name, count in types.most_common())
    print(f"{path}: {field.contents()}, {len(reader.fields)} fields, {len(reader.tensors)} tensors ({shown})")
    whole = True
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = tuple(reversed([int(side) for side in tensor.shape]))
        if not np.isfinite(values).all() or values.size != np.prod(expected):
            print(f"{tensor.name} is {values.shape} with numbers that are not finite, or not {expected}")
            whole = False
    return whole


def compare(path, args):
    """Whether llama.cpp computes the reference's logits."""
    try:
        from llama_cpp import Llama
        from safetensors.numpy import load_file
    except ImportError as error:
        refuse(f"{error}; install safetensors and llama-cpp-python")
    reference = load_file(args.outputs)
    ids, expected = reference["input_ids"].reshape(-1), reference["logits"]
    expected = expected.reshape(-1, expected.shape[-1]).astype(np.float64)
    count = args.tokens or len(ids)
    # Keys and values in f32, and no kernel that rounds them.
    model = Llama(
        str(path), n_ctx=max(count + 1, 32), logits_all=True, flash_attn=False, type_k=0, type_v=0, n_threads=1,
        verbose=False)
    model.eval([int(i) for i in ids[:count]])
    found = np.array(model.scores[:count], dtype=np.float64)
    expected = expected[:count]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    same = (found.argmax(-1) == expected.argmax(-1)).mean()
    print(f"{path}: logits of {count} tokens differ by {error:.2e}, the likeliest token is the same for {same:.0%}")
    return error <= args.tolerance


def main():
    args = arguments()
    good = all([look_over(path) for path in args.files])
    if args.outputs:
        good &= compare(args.files[0], args)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
