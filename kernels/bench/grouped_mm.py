#!/usr/bin/env python3
"""torch's grouped matrix product on the shapes and row counts that cuda_bench wrote (--counts=FILE).

    cuda_bench --counts=counts.txt && python3 kernels/bench/grouped_mm.py counts.txt

Times both products and SiLU * up between them, from rows already sorted by expert: without the sort, the gather and the
merge. So compare it with the column `experts`, not with `chain`. Graph replays of 30 calls over rotating sets of
weights, the median of 7, as cuda_bench does.
"""

import sys

import torch

SHAPES = {  # hidden, inner, sets of weights
    "Qwen3-30B-A3B": (2048, 768, 3),
    "Mixtral-8x7B": (4096, 14336, 2),
    "DeepSeek-V3,_32_of_256": (7168, 2048, 2),
}
CALLS, REPLAYS = 30, 7


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
    print("| block | n | grouped_mm us |\n| --- | --- | --- |")
    loaded, weights = None, []
    for line in open(sys.argv[1]):
        name, n, counts = line.split(" ", 2)
        counts = torch.tensor([int(c) for c in counts.strip("[]\n ").split(",")])
        hidden, inner, sets = SHAPES[name]
        if loaded != name:
            loaded, weights = name, []
            torch.cuda.empty_cache()
            for _ in range(sets):
                gate_up = torch.randn(len(counts), 2 * inner, hidden, device="cuda", dtype=torch.bfloat16) * 0.02
                down = torch.randn(len(counts), hidden, inner, device="cuda", dtype=torch.bfloat16) * 0.02
                weights.append((gate_up.transpose(1, 2), down.transpose(1, 2)))
        ends = torch.cumsum(counts, 0).to(torch.int32).cuda()
        x = torch.randn(int(counts.sum()), hidden, device="cuda", dtype=torch.bfloat16)

        def call(i):
            gate_up, down = weights[i % sets]
            gate, up = torch._grouped_mm(x, gate_up, offs=ends).chunk(2, -1)
            return torch._grouped_mm(torch.nn.functional.silu(gate) * up, down, offs=ends)

        print(f"| {name.replace('_', ' ')} | {n} | {timed(call):.1f} |", flush=True)


main()
