"""Makes the GGUF fixtures of the tests: small LLaMAs that hold every supported tensor type, and
byte-level tokenizers of every supported kind, with what the `gguf`, `transformers` and
`tokenizers` packages make of them.

    python scripts/gguf_fixtures.py        # from the repository's root

Needs gguf, numpy, torch, transformers, tokenizers and safetensors. What the package cannot quantise
is quantised by llama.cpp's own library: SQ_LLAVA_LLAMA_CPP names the folder of libggml-base.so.
"""

import ctypes
import json
import os
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import import_protobuf

Q = gguf.GGMLQuantizationType
MODELS = Path("sq-llava-model/tests/fixtures/gguf")
TOKENIZERS = Path("sq-llava-data/tests/fixtures/gguf")
rng = np.random.default_rng(20240922)

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER, LAYERS = 256, 4, 2, 16, 64, 2


def interleave(weight, heads):
    """llama.cpp's order of the rows of queries and keys (`LlamaModel.permute`)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def apart(weight, heads):
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def halves(shape, low, high):
    return rng.uniform(low, high, shape).astype(np.float16).view(np.uint8)


def k_blocks(kind, rows, columns):
    """Random blocks of a K type, for which the package only dequantises."""
    blocks = rows * columns // 256
    raw = lambda n: rng.integers(0, 256, (blocks, n), dtype=np.uint8)
    if kind == Q.Q2_K:
        parts = [raw(16 + 64), halves((blocks, 1), 2e-3, 4e-3), halves((blocks, 1), 3e-3, 6e-3)]
    elif kind == Q.Q3_K:
        parts = [raw(32 + 64 + 12), halves((blocks, 1), 8e-4, 1.6e-3)]
    elif kind == Q.IQ4_XS:
        parts = [halves((blocks, 1), 3e-5, 7e-5), raw(2 + 4 + 128)]
    elif kind == Q.IQ4_NL:
        blocks = rows * columns // 32
        parts = [halves((blocks, 1), 5e-4, 1.1e-3), raw(16)]
    elif kind == Q.Q6_K:
        parts = [raw(192 + 16), halves((blocks, 1), 2e-5, 8e-5)]
    else:
        high = [raw(32)] if kind == Q.Q5_K else []
        step = 4e-4 if kind == Q.Q4_K else 2e-4
        parts = [halves((blocks, 1), step / 2, step), halves((blocks, 1), 1e-3, 3e-3), raw(12), *high, raw(128)]
    return np.concatenate(parts, axis=1).reshape(rows, -1)


def store(writer, name, kind, weight):
    """Adds a matrix in a type; returns the values that the package reads from it."""
    if kind in (Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_NL, Q.IQ4_XS):
        data = k_blocks(kind, *weight.shape)
    elif kind in (Q.F32, Q.F16):
        data = weight.astype({Q.F32: np.float32, Q.F16: np.float16}[kind])
        writer.add_tensor(name, data)
        return data.astype(np.float32)
    else:
        data = quantize(weight, kind)
    writer.add_tensor(name, data, raw_dtype=kind)
    return dequantize(data, kind)


def spm_vocabulary(writer):
    proto = import_protobuf().ModelProto.FromString(
        Path("golden/data/i_end_to_end/tokenizer.model").read_bytes())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece for piece in proto.pieces])
    writer.add_token_scores([piece.score for piece in proto.pieces])
    writer.add_token_types([piece.type for piece in proto.pieces])
    spec = proto.trainer_spec
    writer.add_bos_token_id(spec.bos_id)
    writer.add_eos_token_id(spec.eos_id)
    writer.add_unk_token_id(spec.unk_id)
    return len(proto.pieces)


def model(name, kinds, embedding, head, scaling):
    writer = gguf.GGUFWriter(MODELS / f"{name}.gguf", "llama")
    vocabulary = spm_vocabulary(writer)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    theta = 500000.0 if scaling else 10000.0
    writer.add_rope_freq_base(theta)
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        # As `LlamaModel.generate_extra_tensors` of llama.cpp's converter writes them.
        rope = {"rope_type": "llama3", "rope_theta": theta, **scaling}
        freqs = 1.0 / (theta ** (np.arange(0, HEAD_DIM, 2, dtype=np.float64) / HEAD_DIM))
        low, high, old = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["original_max_position_embeddings"]
        factors = []
        for wave in 2 * np.pi / freqs:
            if wave < old / high:
                factors.append(1.0)
            elif wave > old / low:
                factors.append(scaling["factor"])
            else:
                smooth = (old / wave - low) / (high - low)
                factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))

    state = {}

    def matrix(file_name, key, kind, rows, columns, heads=None):
        weight = (rng.standard_normal((rows, columns)) * 0.06).astype(np.float32)
        if heads:
            weight = interleave(weight, heads)
        values = store(writer, file_name, kind, weight)
        state[key] = apart(values, heads) if heads else values

    def norm(file_name, key):
        weight = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)
        writer.add_tensor(file_name, weight)
        state[key] = weight

    matrix("token_embd.weight", "model.embed_tokens.weight", embedding, vocabulary, HIDDEN)
    norm("output_norm.weight", "model.norm.weight")
    if head is not None:
        matrix("output.weight", "lm_head.weight", head, vocabulary, HIDDEN)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for layer in range(LAYERS):
        kind = kinds[layer]
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        norm(theirs + "attn_norm.weight", ours + "input_layernorm.weight")
        norm(theirs + "ffn_norm.weight", ours + "post_attention_layernorm.weight")
        for file_name, key, rows, columns, heads in [
            ("attn_q", "self_attn.q_proj", q, HIDDEN, HEADS),
            ("attn_k", "self_attn.k_proj", kv, HIDDEN, KV_HEADS),
            ("attn_v", "self_attn.v_proj", kv, HIDDEN, None),
            ("attn_output", "self_attn.o_proj", HIDDEN, q, None),
            ("ffn_gate", "mlp.gate_proj", INTER, HIDDEN, None),
            ("ffn_up", "mlp.up_proj", INTER, HIDDEN, None),
            ("ffn_down", "mlp.down_proj", HIDDEN, INTER, None),
        ]:
            matrix(f"{theirs}{file_name}.weight", f"{ours}{key}.weight", kind[file_name], rows, columns, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INTER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
        vocab_size=vocabulary, max_position_embeddings=512, rms_norm_eps=1e-5,
        rope_parameters=rope, tie_word_embeddings=head is None)
    reference = LlamaForCausalLM(config).eval()
    tensors = {key: torch.from_numpy(value.copy()) for key, value in state.items()}
    missing = reference.load_state_dict(tensors, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if head is None else []), missing
    reference.tie_weights()
    ids = rng.integers(3, vocabulary, (1, 40))
    with torch.no_grad():
        logits = reference(torch.from_numpy(ids)).logits[0].numpy()
    # Four rows of every matrix are enough to tell a format, the sums the rest.
    out = {"input_ids": ids[0].astype(np.int64), "logits": logits.astype(np.float32)}
    for key, value in state.items():
        rows = [0, 1, value.shape[0] // 2, value.shape[0] - 1] if value.ndim == 2 else slice(None)
        out["rows." + key] = np.ascontiguousarray(value[rows])
        out["sum." + key] = np.array([value.astype(np.float64).sum(), np.abs(value.astype(np.float64)).sum()])
    save_file(out, MODELS / f"{name}.safetensors")


def kinds(q, k, v, o, gate, up, down):
    return {"attn_q": q, "attn_k": k, "attn_v": v, "attn_output": o, "ffn_gate": gate, "ffn_up": up, "ffn_down": down}


def quantized():
    """What the package's quantisers make of a matrix, ties and zeros included."""
    weight = rng.standard_normal((8, 96)).astype(np.float32) * 0.05
    weight[0, :32] = 0.0
    weight[1, :32] = 0.25
    weight[2, 32:64] = np.arange(32) / 8
    weight[3] = np.round(weight[3] * 64) / 64
    out = {"weight": weight}
    for kind in (Q.Q8_0, Q.Q4_1):
        blocks = quantize(weight, kind)
        out[kind.name] = blocks
        out[kind.name + ".values"] = dequantize(blocks, kind)
    save_file(out, MODELS / "quantized.safetensors")


def written():
    """The types that are written and not computed on."""
    rng = np.random.default_rng(20261127)
    weight = rng.standard_normal((6, 512)).astype(np.float32) * 0.05
    weight[0, :256] = 0.0
    weight[1, :64] = 0.25
    weight[2] = np.abs(weight[2])
    weight[3] = -np.abs(weight[3])
    weight[4] = np.round(weight[4] * 64) / 64
    out = {"weight": weight, "Q4_0": quantize(weight, Q.Q4_0)}
    folder = os.environ.get("SQ_LLAVA_LLAMA_CPP")
    if not folder:
        raise SystemExit("name the folder of llama.cpp's libraries with SQ_LLAVA_LLAMA_CPP")
    ggml = ctypes.CDLL(str(Path(folder) / "libggml-base.so"))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + 3 * [ctypes.c_int64] + [ctypes.c_void_p]
    blocks = np.zeros((6, 2 * 144), dtype=np.uint8)
    ggml.ggml_quantize_chunk(Q.Q4_K, weight.ctypes.data, blocks.ctypes.data, 0, *weight.shape, None)
    out["Q4_K"] = blocks
    for kind in (Q.Q4_0, Q.Q4_K):
        out[kind.name + ".values"] = dequantize(out[kind.name], kind)
    save_file(out, MODELS / "written.safetensors")


def mmproj():
    """A tower and a projector as `convert_image_encoder_to_gguf.py` of llama.cpp wrote them: one layer
    less than the tower has, the linears of the MLPs by each other's names, no word about the layer
    of the features, which `clip.cpp` then takes before the last one of the file."""
    torch.manual_seed(20261127)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        image_size=28, patch_size=7, projection_dim=16)
    tower = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    projector = torch.nn.Sequential(torch.nn.Linear(32, HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, HIDDEN))
    writer = gguf.GGUFWriter(MODELS.parent / "mmproj" / "mmproj.gguf", "clip")
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    for key, value in [
        ("image_size", 28), ("patch_size", 7), ("embedding_length", 32), ("feed_forward_length", 48),
        ("projection_dim", 16), ("attention.head_count", 2), ("block_count", 3)]:
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    writer.add_bool("clip.use_gelu", False)
    state = {name.removeprefix("vision_model."): value for name, value in tower.state_dict().items()}
    for name, value in state.items():
        if name.startswith(("encoder.layers.3.", "post_layernorm.")) or name.endswith("position_ids"):
            continue
        for old, new in [
            ("embeddings.", ""), ("encoder.layers.", "blk."), ("self_attn.", "attn_"), ("_proj", ""),
            ("layer_norm", "ln"), ("layrnorm", "ln"), ("mlp.fc1", "ffn_down"), ("mlp.fc2", "ffn_up"),
            ("embedding", "embd")]:
            name = name.replace(old, new)
        half = value.ndim == 4 or (value.ndim == 2 and name.endswith("ffn_up.weight"))
        if half:
            value.copy_(value.half().float())
        writer.add_tensor("v." + name, value.numpy().astype(np.float16 if half else np.float32))
    for name, value in projector.state_dict().items():
        writer.add_tensor("mm." + name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
        features = projector(states[2][:, 1:])
    save_file({"pixels": pixels.numpy(), "features": features.numpy()}, MODELS.parent / "mmproj" / "mmproj.safetensors")


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "", " ", "Hello world", "  two  spaces\n\n and\ttabs \r\n", "It's 2024, they'LL pay $1,234.56!",
    "<|start|>user\nWhat?<|end|>\n", "漢字 and 🦙 llamas, naïve café — “quotes”…", "x=3;y=x**2 # done",
    "12345678 ½ ² ٣", "don't\u00a0stop\u2028now", "Hello<tool>world</tool>", "'s 's it'S",
]


def byte_level(kind, pre, ignore_merges):
    corpus = Path("README.md").read_text() + "\n".join(TEXTS[2:5])
    special, plain = ["<|pad|>", "<|start|>", "<|end|>"], ["<tool>"]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([corpus], trainer)
    tokenizer.add_tokens(plain)
    data = json.loads(tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer = gguf.GGUFWriter(TOKENIZERS / f"bpe-{kind}.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in special else 4 if t in plain else 1 for t in tokens])
    merges = data["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    cases = [{"text": text, "ids": tokenizer.encode(text).ids} for text in TEXTS]
    text = json.dumps(cases, ensure_ascii=False, indent=0)
    (TOKENIZERS / f"bpe-{kind}.json").write_text(text + "\n")


def main():
    MODELS.mkdir(parents=True, exist_ok=True)
    TOKENIZERS.mkdir(parents=True, exist_ok=True)
    (MODELS.parent / "mmproj").mkdir(exist_ok=True)
    model(
        "untied-llama3",
        [
            kinds(Q.Q4_K, Q.Q6_K, Q.Q5_K, Q.Q4_0, Q.Q4_K, Q.Q6_K, Q.Q8_0),
            kinds(Q.Q8_0, Q.Q4_1, Q.F16, Q.Q5_0, Q.BF16, Q.Q5_1, Q.Q4_1),
        ],
        Q.Q8_0, Q.Q6_K,
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    )
    model(
        "tied",
        [kinds(Q.Q4_1, Q.Q4_1, Q.Q4_1, Q.Q4_1, Q.Q4_1, Q.Q4_1, Q.Q4_1),
         kinds(Q.Q4_0, Q.Q8_0, Q.F32, Q.Q8_0, Q.Q4_0, Q.Q8_0, Q.F32)],
        Q.Q8_0, None, None,
    )
    quantized()
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    byte_level("gpt-2", gpt2, False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level("smollm", pre_tokenizers.Sequence([digits, gpt2]), False)
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level("llama-bpe", pre_tokenizers.Sequence([split, bytes_only]), True)
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    byte_level("qwen2", pre_tokenizers.Sequence([split, bytes_only]), False)
    model(
        "few-bits",
        [kinds(Q.Q2_K, Q.Q3_K, Q.IQ4_XS, Q.IQ4_NL, Q.Q2_K, Q.Q3_K, Q.MXFP4),
         kinds(Q.IQ4_XS, Q.MXFP4, Q.IQ4_NL, Q.MXFP4, Q.MXFP4, Q.IQ4_XS, Q.IQ4_NL)],
        Q.MXFP4, Q.Q3_K, None,
    )
    written()
    mmproj()


if __name__ == "__main__":
    main()
