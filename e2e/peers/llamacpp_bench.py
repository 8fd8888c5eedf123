#!/usr/bin/env python3
"""Decode speed of a seeded random Mixtral-shaped model of over 1 GB in llama.cpp, against what DRAM allows, as JSON.

    python llamacpp_bench.py /tmp/big-moe

Writes DIR/hf (config.json and bf16 safetensors, for `sluice-agent bench --model DIR/hf`) and DIR/model.gguf (the same
tensors, bf16, in llama.cpp's names) unless they are there, reads DRAM with all cores, and lets llama.cpp generate at
concurrency 1. The bound is bytes touched per token over the read bandwidth: no engine that keeps these weights in bf16 can
decode one sequence faster, unless they fit the caches.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from pathlib import Path

from big_moe import Shape, bytes_per_token, write_gguf, write_hf
from membw import read_bandwidth
from workload import machine


def build(directory: Path, shape: Shape, seed: int) -> tuple[Path, Path]:
    hf, gguf = directory / "hf", directory / "model.gguf"
    directory.mkdir(parents=True, exist_ok=True)
    if not (hf / "config.json").exists():
        print(f"writing {hf}", file=sys.stderr)
        write_hf(hf, shape, seed)
    if not gguf.exists():
        print(f"writing {gguf}", file=sys.stderr)
        write_gguf(hf, gguf)
    return hf, gguf


def llama_cpp_speed(gguf: Path, prompt: list[int], tokens: int, threads: int, repeats: int) -> dict:
    """Tokens per second of greedy decoding after the prompt, through the C API: no Python sampling in the loop."""
    import llama_cpp as api
    import numpy

    silent = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silent, None)
    api.llama_backend_init()
    model_parameters = api.llama_model_default_params()
    model = api.llama_model_load_from_file(str(gguf).encode(), model_parameters)
    if not model:
        raise SystemExit(f"llama.cpp does not load {gguf}")
    context_parameters = api.llama_context_default_params()
    context_parameters.n_ctx = len(prompt) + tokens + 8
    context_parameters.n_batch = max(len(prompt), 32)
    context_parameters.n_threads = context_parameters.n_threads_batch = threads
    context = api.llama_init_from_model(model, context_parameters)
    if not context:
        raise SystemExit("llama.cpp makes no context")
    vocabulary = api.llama_model_get_vocab(model)
    size = api.llama_vocab_n_tokens(vocabulary)

    def step(ids: list[int]) -> int:
        array = (api.llama_token * len(ids))(*ids)
        if api.llama_decode(context, api.llama_batch_get_one(array, len(ids))) != 0:
            raise SystemExit("llama_decode failed")
        logits = ctypes.cast(api.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float * size)).contents
        return int(numpy.frombuffer(logits, dtype=numpy.float32).argmax())

    speeds, produced = [], []
    for _ in range(repeats + 1):  # the first run pages the weights in
        api.llama_memory_clear(api.llama_get_memory(context), True)
        token = step(prompt)
        produced = [token]
        began = time.perf_counter()
        for _ in range(tokens - 1):
            token = step([token])
            produced.append(token)
        speeds.append((tokens - 1) / (time.perf_counter() - began))
    system = api.llama_print_system_info().decode()
    api.llama_free(context)
    api.llama_model_free(model)
    return {
        "tokens_per_second": round(statistics.median(speeds[1:]), 2),
        "all": [round(s, 2) for s in speeds[1:]],
        "threads": threads,
        "tokens": produced,
        "build": system,
        "version": api.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the model is or shall be (needs twice its size)")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=3584)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-build", action="store_true", help="write the model and measure nothing")
    arguments = parser.parse_args()
    shape = Shape(
        hidden=arguments.hidden,
        intermediate=arguments.intermediate,
        blocks=arguments.blocks,
        experts=arguments.experts,
        vocab=arguments.vocab,
    )
    hf, gguf = build(arguments.directory, shape, arguments.seed)
    if arguments.only_build:
        return
    where = machine()
    prompt = [(i * 7919 + 13) % shape.vocab for i in range(arguments.prompt_tokens)]
    before = read_bandwidth(arguments.threads[-1])
    runs = [
        llama_cpp_speed(gguf, prompt, arguments.tokens, threads, arguments.repeats) for threads in arguments.threads
    ]
    after = read_bandwidth(arguments.threads[-1])
    touched = bytes_per_token(shape, arguments.prompt_tokens + arguments.tokens // 2)
    bandwidth = max(before, after)
    bound = bandwidth / touched["total"]
    for run in runs:
        run["of_bound"] = round(run["tokens_per_second"] / bound, 3)
    print(
        json.dumps(
            {
                "peer": "llama.cpp",
                **where,
                "model_bytes": sum(f.stat().st_size for f in hf.glob("*.safetensors")),
                "gguf_bytes": gguf.stat().st_size,
                "prompt_ids": prompt,
                "bytes_per_token": touched,
                "dram_read_bytes_per_second": {"before": round(before), "after": round(after)},
                "bound_tokens_per_second": round(bound, 2),
                "runs": runs,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
