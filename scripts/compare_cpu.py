#!/usr/bin/env python3
"""Times this project, PyTorch and llama.cpp in turn on the same work, and prints the ratios.

    python scripts/compare_cpu.py --sq-llava target/release/sq-llava
        [--llama-bench BIN --gguf DIR] [--rounds 3] [--only NAME ...] [--json OUT]

Shapes have random weights. `--gguf` is a folder with SmolLM2-135M as f16.gguf, Q8_0.gguf and
Q4_1.gguf (llama.cpp's convert_hf_to_gguf.py and llama-quantize). The machine must be otherwise
idle. Needs torch, torchvision, transformers, peft and pillow. A ratio above 1 means that this
project is faster. The processor and the path that the kernels take stand above the table; with
`SQ_LLAVA_CPU` in the environment they take another one. PyTorch's bf16 rows are of a model in bf16,
the LoRA step's of one in f32 under autocast to bf16.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time

# Of `sq-llava bench --shape`: sizes of the LLMs and of their LoRA step (rank, batch, tokens).
LLMS = {
    "smollm2-135m": (dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                          num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
                          tie_word_embeddings=True), (16, 4, 128)),
    "llama-168m": (dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=8,
                        num_attention_heads=16, num_key_value_heads=16, vocab_size=32000,
                        tie_word_embeddings=False), (128, 1, 256)),
}
TOWERS = {"vit-l": (1024, 24, 16, 4096, 336, 14), "vit-b": (768, 12, 12, 3072, 224, 16),
          "vit-s": (384, 12, 6, 1536, 336, 14)}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT, TOKENS, REPEAT = 640, 32, 3


def median(work, repeat=REPEAT):
    work()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def bf16_is_fast():
    """Whether bf16 is worth its time in PyTorch, by the processor's flags (Linux): with AMX, or on
    AMD in vectors. In Intel's vectors a round takes minutes."""
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read()
    except OSError:
        return False
    return "amx_bf16" in text or ("AuthenticAMD" in text and "avx512_bf16" in text)


def torch_llm(name):
    """Rows of one LLM: units of work per second by name."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes, (rank, batch, tokens) = LLMS[name]
    config = LlamaConfig(max_position_embeddings=2048, rms_norm_eps=1e-5, **sizes)
    model = LlamaForCausalLM(config).eval()

    def decode(model, context):
        ids = torch.tensor([[5]])
        start = torch.ones(1, context, dtype=torch.long)
        with torch.inference_mode():
            def run():
                cache = model(input_ids=start, use_cache=True, logits_to_keep=1).past_key_values
                begin = time.perf_counter()
                for _ in range(TOKENS):
                    model(input_ids=ids, past_key_values=cache, use_cache=True)
                return time.perf_counter() - begin
            run()
            return TOKENS / statistics.median(run() for _ in range(REPEAT))

    rows = {}
    with torch.inference_mode():
        prompt = torch.randn(1, PROMPT, config.hidden_size)
        forward = lambda: model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
        rows[f"prefill of {PROMPT} tokens"] = PROMPT / median(forward)
    for context in (64, PROMPT):
        rows[f"decode f32 behind {context} tokens"] = decode(model, context)
    tuned = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0,
                                             target_modules=LINEARS)).train()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    ids = torch.randint(0, config.vocab_size, (batch, tokens))

    def step():
        optimizer.zero_grad(set_to_none=True)
        tuned(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    work = f"LoRA step, rank {rank}, {batch}×{tokens} tokens"
    rows[work] = batch * tokens / median(step)
    if bf16_is_fast():
        with torch.autocast("cpu", torch.bfloat16):
            rows[f"{work}, bf16 base"] = batch * tokens / median(step)
    del tuned, optimizer, trained, model
    half = LlamaForCausalLM(config).eval().bfloat16()
    # A short prompt: PyTorch's bf16 products are slow on processors without such instructions.
    rows["decode f16 behind 64 tokens"] = decode(half, 8)
    if bf16_is_fast():
        with torch.inference_mode():
            short = prompt.bfloat16()
            forward = lambda: half(inputs_embeds=short, use_cache=True, logits_to_keep=1)
            rows[f"prefill of {PROMPT} tokens, bf16"] = PROMPT / median(forward)
        for context in (64, PROMPT):
            rows[f"decode bf16 behind {context} tokens"] = decode(half, context)
    return rows


def torch_tower(name):
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    hidden, layers, heads, mlp, side, patch = TOWERS[name]
    config = CLIPVisionConfig(hidden_size=hidden, num_hidden_layers=layers, image_size=side,
                              num_attention_heads=heads, intermediate_size=mlp, patch_size=patch,
                              hidden_act="quick_gelu")
    model, pixels = CLIPVisionModel(config).eval(), torch.randn(1, 3, side, side)
    work = f"vision tower, {side}×{side}"
    with torch.inference_mode():
        rows = {work: 1 / median(lambda: model(pixels))}
        if bf16_is_fast():
            half, small = model.bfloat16(), pixels.bfloat16()
            rows[f"{work}, bf16"] = 1 / median(lambda: half(small))
    return rows


def torch_prototype(_):
    """The paper's extractor, 576 tokens of 1024, K 256, T 2, in matrix products."""
    import torch
    from torch import nn
    from torch.nn.functional import normalize

    q, k, v, z = (nn.Linear(1024, 1024) for _ in range(4))
    centres, tokens = torch.randn(256, 1024), torch.randn(1, 576, 1024)

    def forward():
        keys, values, found = k(tokens), v(tokens), centres.expand(1, -1, -1)
        for _ in range(2):
            found = (q(found) @ keys.transpose(1, 2)).softmax(1) @ values
        near = normalize(tokens, dim=-1) @ normalize(found, dim=-1).transpose(1, 2)
        return tokens + z(near @ found / 256)

    with torch.inference_mode():
        rows = {"prototype extractor": 1 / median(forward, 10)}
    both = lambda: forward().square().mean().backward()
    rows["prototype extractor and gradients"] = 1 / median(both, 5)
    return rows


def torch_stage2(_):
    """Of `sq-llava bench --shape train`: DINOv2-S/14 at 112 pixels up to its last layer but one,
    prototypes (K 64, T 2), projector, SmolLM2-135M, adapters of rank 16 with dropout on both towers,
    four trainable token rows, logits where something is learnt, AdamW with clipping."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from torch.nn.functional import cross_entropy, embedding, normalize
    from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

    batch, tokens, learnt, new, side = 8, 170, 38, 4, 112
    sizes = LLMS["smollm2-135m"][0]
    hidden, vocabulary = sizes["hidden_size"], sizes["vocab_size"]
    lora = lambda names: LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=names)
    llm = LlamaForCausalLM(LlamaConfig(max_position_embeddings=2048, rms_norm_eps=1e-5, **sizes))
    table, llm = llm.model.embed_tokens.weight, get_peft_model(llm, lora(LINEARS)).train()
    vit = Dinov2Model(Dinov2Config(hidden_size=384, num_hidden_layers=11, num_attention_heads=6,
                                   image_size=side, patch_size=14))
    vit = get_peft_model(vit, lora(["query", "key", "value", "dense", "fc1", "fc2"])).train()
    q, k, v, z = (nn.Linear(384, 384) for _ in range(4))
    centres = torch.randn(64, 384)
    projector = nn.Sequential(nn.Linear(384, hidden), nn.GELU(), nn.Linear(hidden, hidden))
    rows = nn.Parameter(torch.randn(new, hidden) * 0.02)
    modules = [llm, vit, q, k, v, z, projector]
    trained = [p for m in modules for p in m.parameters() if p.requires_grad] + [rows]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    pixels = torch.randn(batch, 3, side, side)
    patches = (side // 14) ** 2
    ids = torch.randint(0, vocabulary, (batch, tokens - patches))
    labels = ids[:, -learnt:].reshape(-1)

    def prototypes(seen):
        keys, values, found = k(seen), v(seen), centres.expand(batch, -1, -1)
        for _ in range(2):
            found = (q(found) @ keys.transpose(1, 2)).softmax(1) @ values
        near = normalize(seen, dim=-1) @ normalize(found, dim=-1).transpose(1, 2)
        return seen + z(near @ found / len(centres))

    def step():
        optimizer.zero_grad(set_to_none=True)
        seen = vit(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        text = embedding(ids, table)
        text = torch.cat([text[:, :-learnt - 1], rows[:1].expand(batch, 1, -1),
                          text[:, -learnt:]], 1)
        inputs = torch.cat([text[:, :1], projector(prototypes(seen)), text[:, 1:]], 1)
        states = llm.base_model.model.model(inputs_embeds=inputs, use_cache=False)
        states = states.last_hidden_state[:, -learnt - 1:-1].reshape(-1, hidden)
        logits = torch.cat([states @ table.T, states @ rows.T], 1)
        cross_entropy(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return {f"stage 2 step, rank 16, {batch}×{tokens} tokens": batch * tokens / median(step)}


def photograph(path):
    """A JPEG of 640×427 pixels, quality 90."""
    import numpy as np
    from PIL import Image
    dots = np.random.default_rng(0).integers(0, 255, (27, 40, 3), dtype=np.uint8)
    Image.fromarray(dots).resize((640, 427), Image.BICUBIC).save(path, "JPEG", quality=90)


def processors():
    """From the bytes of a picture to 336×336, padded and normalised, by name."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor
    from transformers import LlavaImageProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    sizes = dict(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336},
                 do_pad=True)
    tensors, pil = LlavaImageProcessor(**sizes), LlavaImageProcessorPil(**sizes)
    mean, std = (np.array(v, dtype=np.float32) for v in (pil.image_mean, pil.image_std))
    opened = lambda data: Image.open(io.BytesIO(data)).convert("RGB")

    def pillow(data):
        picture = opened(data)
        side = max(picture.size)
        square = Image.new("RGB", (side, side), (122, 116, 104))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        small = np.asarray(square.resize((336, 336), Image.BICUBIC), dtype=np.float32)
        return np.ascontiguousarray(((small / 255 - mean) / std).transpose(2, 0, 1))

    return {"transformers, tensors":
                lambda data: tensors(pil_to_tensor(opened(data)), return_tensors="pt"),
            "transformers, Pillow": lambda data: pil(opened(data), return_tensors="pt"),
            "Pillow and numpy": pillow}


def prepare(name, data, threads, count=64):
    """Pictures/s of preparing one over and over."""
    import torch
    torch.set_num_threads(threads)
    work = processors()[name]
    work(data)
    begin = time.perf_counter()
    for _ in range(count):
        work(data)
    return count / (time.perf_counter() - begin)


def torch_image(path):
    """The fastest of the processors, in one process on one core, and on all cores: in a process
    for each, or in one with as many threads."""
    with open(path, "rb") as file:
        data = file.read()
    cores, rows = os.cpu_count(), {"one core": 0.0, "all cores": 0.0}
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        for name in processors():
            for row, jobs, threads in (("one core", 1, 1), ("all cores", cores, 1),
                                       ("all cores", 1, cores)):
                done = [pool.apply_async(prepare, (name, data, threads)) for _ in range(jobs)]
                speed = sum(each.get() for each in done)
                print(f"{name}, {jobs} × {threads}: {speed:.1f} images/s", file=sys.stderr)
                rows[row] = max(rows[row], speed)
    return {f"image to 336×336, {row}": speed for row, speed in rows.items()}


def pytorch(name, picture):
    """Rows of a shape, measured in a process of its own."""
    command = [sys.executable, __file__, "--torch", name, "--image", picture]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def ours(binary, name, picture):
    command = [binary, "bench", "--device", "cpu", "--shape", name, "--json", "--tokens",
               str(TOKENS), "--repeat", str(REPEAT)]
    if name == "image":
        command += ["--image", picture]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["name"]: row for row in rows if "name" in row}


def notes(binary):
    """The processor, its units and their limits, as the program says them."""
    command = [binary, "bench", "--device", "cpu", "--limits"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def llama_cpp(binary, folder):
    """Of SmolLM2-135M: prompt tokens/s of f16, and tokens/s behind nothing and behind the prompt."""
    def bench(file, *arguments):
        command = [binary, "-m", os.path.join(folder, f"{file}.gguf"), "-t", str(os.cpu_count()),
                   "-r", str(REPEAT), "-o", "json", *arguments]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL).stdout)

    rows = {f"prefill of {PROMPT} tokens": bench("f16", "-p", str(PROMPT), "-n", "0")[0]["avg_ts"]}
    for file, weights in (("f16", "f16"), ("Q8_0", "q8"), ("Q4_1", "q4")):
        for row in bench(file, "-p", "0", "-n", "64", "-d", f"0,{PROMPT}"):
            rows[f"decode {weights} behind {row['n_depth'] or 64} tokens"] = row["avg_ts"]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sq-llava")
    parser.add_argument("--llama-bench")
    parser.add_argument("--gguf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[*LLMS, "train", *TOWERS, "prototype", "image"])
    parser.add_argument("--json")
    parser.add_argument("--torch", help=argparse.SUPPRESS)
    parser.add_argument("--image", help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = {**dict.fromkeys(LLMS, torch_llm), **dict.fromkeys(TOWERS, torch_tower),
            "train": torch_stage2, "prototype": torch_prototype, "image": lambda _: torch_image(given.image)}
    if given.torch:
        import torch
        torch.set_num_threads(os.cpu_count())
        torch.manual_seed(0)
        print(json.dumps(work[given.torch](given.torch)))
        return
    if not given.sq_llava:
        parser.error("--sq-llava names the program to time")

    folder = tempfile.TemporaryDirectory()
    picture = os.path.join(folder.name, "picture.jpg")
    photograph(picture)
    results = []
    print(notes(given.sq_llava))
    print("| shape | work | a second | of the limit | × PyTorch | × llama.cpp |")
    print("|---|---|---|---|---|---|", flush=True)
    for shape in given.only:
        rounds = []
        for _ in range(given.rounds):
            mine, theirs = ours(given.sq_llava, shape, picture), pytorch(shape, picture)
            llama = {}
            if given.llama_bench and given.gguf and shape == "smollm2-135m":
                llama = llama_cpp(given.llama_bench, given.gguf)
            rounds.append((mine, theirs, llama))
        for name in rounds[0][0]:
            if name.startswith("limit:"):
                continue
            of = lambda pick: statistics.median(pick(*each) for each in rounds)
            speed = of(lambda mine, *_: mine[name]["per_second"])
            row = {"shape": shape, "name": name, "per_second": speed}
            if rounds[0][0][name]["share_of_limit"]:
                row["share_of_limit"] = of(lambda mine, *_: mine[name]["share_of_limit"])
            # Ratios within a round, so that a slower machine slows both sides.
            for key, side in (("pytorch", 1), ("llama_cpp", 2)):
                if all(name in each[side] for each in rounds):
                    row[key] = statistics.median(
                        each[0][name]["per_second"] / each[side][name] for each in rounds)
            results.append(row)
            cell = lambda key, form: form.format(row[key]) if key in row else ""
            print(f"| {shape} | {name} | {speed:.4g} | {cell('share_of_limit', '{:.0%}')} "
                  f"| {cell('pytorch', '{:.2f}')} | {cell('llama_cpp', '{:.2f}')} |", flush=True)
    if given.json:
        with open(given.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
