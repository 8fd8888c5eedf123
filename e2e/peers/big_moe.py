"""A seeded random Mixtral-shaped model: written as a Hugging Face directory in bf16, and rewritten as GGUF."""

import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fixtures"))
import bpe  # noqa: E402

SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Shape:
    hidden: int = 1024
    intermediate: int = 3584
    blocks: int = 12
    experts: int = 8
    top_k: int = 2
    heads: int = 16
    kv_heads: int = 4
    vocab: int = 8192
    context: int = 2048

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    def config(self) -> dict:
        return {
            "architectures": ["MixtralForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.context,
            "model_type": "mixtral",
            "num_attention_heads": self.heads,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": self.blocks,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.57.1",
            "vocab_size": self.vocab,
        }

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        h, kv = self.hidden, self.kv_heads * self.head
        out: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (self.vocab, h))]
        for block in range(self.blocks):
            at = f"model.layers.{block}."
            out += [
                (at + "input_layernorm.weight", (h,)),
                (at + "self_attn.q_proj.weight", (h, h)),
                (at + "self_attn.k_proj.weight", (kv, h)),
                (at + "self_attn.v_proj.weight", (kv, h)),
                (at + "self_attn.o_proj.weight", (h, h)),
                (at + "post_attention_layernorm.weight", (h,)),
                (at + "block_sparse_moe.gate.weight", (self.experts, h)),
            ]
            for expert in range(self.experts):
                of = f"{at}block_sparse_moe.experts.{expert}."
                out += [
                    (of + "w1.weight", (self.intermediate, h)),
                    (of + "w2.weight", (h, self.intermediate)),
                    (of + "w3.weight", (self.intermediate, h)),
                ]
        return out + [("model.norm.weight", (h,)), ("lm_head.weight", (self.vocab, h))]


def bytes_per_token(shape: Shape, context: int) -> dict:
    """Bytes one decode step of one sequence must read: bf16 weights, and an f32 or f16 cache of `context` positions."""
    h, kv = shape.hidden, shape.kv_heads * shape.head
    attention = shape.blocks * 2 * (2 * h * h + 2 * kv * h)
    experts = shape.blocks * shape.top_k * 2 * 3 * h * shape.intermediate
    router = shape.blocks * 2 * shape.experts * h
    head = 2 * shape.vocab * h
    cache_f16 = shape.blocks * 2 * kv * 2 * context
    return {
        "attention": attention,
        "experts": experts,
        "router": router,
        "lm_head": head,
        "kv_cache_f16": cache_f16,
        "total": attention + experts + router + head + cache_f16,
    }


def to_bf16(values: np.ndarray) -> np.ndarray:
    """f32 -> the bits of bf16, round to nearest, ties to even."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """bf16 bits of one tensor from a stream of its own; scaled so that hidden states keep their size."""
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    values = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        values = 1.0 + 0.1 * values
    else:
        gain = 2.5 if name.endswith(("embed_tokens.weight", "lm_head.weight", "w2.weight")) else 1.4
        values *= gain / np.sqrt(shape[-1])
    return to_bf16(values)


def write_safetensors(path: Path, tensors: list[tuple[str, tuple[int, ...]]], seed: int) -> None:
    """One file, tensor by tensor, so that the whole is never in memory."""
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape in tensors:
            file.write(draw(name, shape, seed).tobytes())


def write_hf(directory: Path, shape: Shape, seed: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, dims in shape.tensors():
        size = 2 * int(np.prod(dims))
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append((name, dims))
        filled += size
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(directory / file, tensors, seed)
        weight_map |= {name: file for name, _ in tensors}
    total = sum(2 * int(np.prod(dims)) for _, dims in shape.tensors())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (directory / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}\n')
    bpe.write(directory)
    # Last: its presence says that the directory is whole.
    (directory / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n")


def read_hf(directory: Path) -> dict[str, np.ndarray]:
    """Name -> bf16 bits, mapped from the files."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        size = int.from_bytes(path.open("rb").read(8), "little")
        header = json.loads(path.open("rb").read(8 + size)[8:])
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
        for name, entry in header.items():
            if name != "__metadata__":
                assert entry["dtype"] == "BF16"
                begin, end = entry["data_offsets"]
                tensors[name] = data[begin:end].view(np.uint16).reshape(entry["shape"])
    return tensors


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order of llama.cpp's RoPE, which rotates neighbours where transformers rotates halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(hf: Path, path: Path) -> None:
    import gguf

    config = json.loads((hf / "config.json").read_text())
    tensors = read_hf(hf)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random mixtral")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("none")

    def bf16(name: str, bits: np.ndarray) -> None:
        data = np.ascontiguousarray(bits).view(np.uint8)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.BF16)

    def f32(name: str, bits: np.ndarray) -> None:
        writer.add_tensor(name, (bits.astype(np.uint32) << 16).view(np.float32))

    bf16("token_embd.weight", tensors["model.embed_tokens.weight"])
    f32("output_norm.weight", tensors["model.norm.weight"])
    bf16("output.weight", tensors["lm_head.weight"])
    experts = range(config["num_local_experts"])
    for block in range(config["num_hidden_layers"]):
        of, to = f"model.layers.{block}.", f"blk.{block}."
        moe = of + "block_sparse_moe."
        f32(to + "attn_norm.weight", tensors[of + "input_layernorm.weight"])
        f32(to + "ffn_norm.weight", tensors[of + "post_attention_layernorm.weight"])
        bf16(to + "attn_q.weight", interleaved(tensors[of + "self_attn.q_proj.weight"], config["num_attention_heads"]))
        bf16(to + "attn_k.weight", interleaved(tensors[of + "self_attn.k_proj.weight"], config["num_key_value_heads"]))
        bf16(to + "attn_v.weight", tensors[of + "self_attn.v_proj.weight"])
        bf16(to + "attn_output.weight", tensors[of + "self_attn.o_proj.weight"])
        f32(to + "ffn_gate_inp.weight", tensors[moe + "gate.weight"])
        for theirs, ours in (("ffn_gate_exps", "w1"), ("ffn_down_exps", "w2"), ("ffn_up_exps", "w3")):
            bf16(f"{to}{theirs}.weight", np.stack([tensors[f"{moe}experts.{e}.{ours}.weight"] for e in experts]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
