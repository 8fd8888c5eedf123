#!/usr/bin/env python3
"""torch's (cuBLAS's) matrix product on the shapes that `cuda_bench dense` times.

    python3 kernels/bench/dense.py

Graph replays of 30 calls over rotating sets of weights, the median of 7, as cuda_bench does. The output is bf16 here in
every case.
"""

import torch

SHAPES = [  # outputs, columns, most rows
    ("Qwen3-30B-A3B QKV", 5120, 2048, 1024),
    ("Qwen3-30B-A3B O", 2048, 4096, 1024),
    ("Qwen3-30B-A3B vocabulary", 151936, 2048, 256),
    ("Mixtral-8x7B QKV", 6144, 4096, 1024),
    ("Mixtral-8x7B O", 4096, 4096, 1024),
    ("Mixtral-8x7B vocabulary", 32000, 4096, 256),
]
ROWS = [1, 8, 16, 32, 64, 128, 256, 512, 1024]
CALLS, REPLAYS, ROTATED = 30, 7, 200 << 20


def timed(call):
    for i in range(3):
        call(i)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call(0)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(CALLS):
                call(i)
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / CALLS)
    return sorted(times)[REPLAYS // 2]


def main():
    torch.manual_seed(1)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| matrix | rows | torch us |\n| --- | --- | --- |")
    for name, outputs, columns, most in SHAPES:
        sets = max(2, -(-ROTATED // (2 * outputs * columns)))
        weights = [torch.randn(outputs, columns, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(sets)]
        for rows in (n for n in ROWS if n <= most):
            x = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
            y = torch.empty(rows, outputs, device="cuda", dtype=torch.bfloat16)
            us = timed(lambda i: torch.mm(x, weights[i % sets].t(), out=y))
            print(f"| {name} | {rows} | {us:.1f} |", flush=True)


main()
