#!/usr/bin/env python3
"""Sluice beside its peers on this machine, in one run: prints the tables of docs/benchmarks/peers.md.

    cargo build --release -p sluice-agent
    python3 -m venv /tmp/hf && /tmp/hf/bin/pip install -r ../fixtures/requirements.txt
    python3 -m venv /tmp/llama && /tmp/llama/bin/pip install -r requirements.txt
    ./compare.py --transformers /tmp/hf/bin/python --llama /tmp/llama/bin/python --big /tmp/big-moe

tiny-moe against transformers: the same prompts and lengths, each side at the best of its settings. A model of some
gigabytes against llama.cpp: one sequence, as a share of what the memory's bandwidth allows. Without a peer's Python its
table is left out. Needs Python 3.9 and nothing else; run nothing else meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from membw import read_bandwidth

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What `serve` is tried with; the best at each concurrency is measured.
SETTINGS = [
    "--layout hybrid --attention-ranks 1",
    "--layout hybrid --attention-ranks 1 --threads 1",
    "--layout hybrid --attention-ranks 2",
    "--layout disaggregated --attention-ranks 1 --expert-workers 1",
]


def say(text):
    print(text, file=sys.stderr, flush=True)


class Server:
    """`sluice-agent serve` on a free port."""

    def __init__(self, agent, flags):
        self.log = tempfile.TemporaryFile(mode="w+")
        command = [agent, "--log-format", "json", "serve", "--listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        self.url = f"http://{self.address()}"

    def address(self):
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            self.log.seek(0)
            text = self.log.read()
            for line in text.splitlines():
                if '"serving"' in line and (event := json.loads(line)):
                    return event.get("listen") or event["fields"]["listen"]
            if self.process.poll() is not None:
                sys.exit(f"serve ended: {text}")
            time.sleep(0.1)
        sys.exit("serve does not become ready")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)


def bench(agent, url, *flags):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [agent, "bench", "--url", url, "--json", out.name, *map(str, flags)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        report = json.load(open(out.name))
    if report["requests"]["served"] != report["requests"]["sent"]:
        sys.exit(f"not all requests were served: {report['requests']}")
    return report


def run(python, script, *flags):
    done = subprocess.run([python, HERE / script, *map(str, flags)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def tiny(agent, python, quick, repeats):
    """tokens/s of both sides by concurrency."""
    with tempfile.TemporaryDirectory() as scratch:
        requests = Path(scratch) / "requests.jsonl"
        peer = run(
            python, "transformers_bench.py", ROOT / "models" / "tiny-moe", "--concurrency", 1, 32,
            "--write-requests", requests, *(["--quick"] if quick else []),
        )
        ours = {1: {}, 32: {}}
        for setting in SETTINGS:
            with Server(agent, setting.split()) as server:
                for concurrency, count in ((1, 64), (32, 256)):
                    load = ("--prompts", requests, "-c", concurrency, "-n", count)
                    runs = [bench(agent, server.url, *load)["tokens"]["output_per_second"] for _ in range(repeats)]
                    ours[concurrency][setting] = statistics.median(runs)
                    say(f"  {ours[concurrency][setting]:9.1f} tokens/s at {concurrency}: {setting}")
    print(f"transformers {peer['transformers']}, torch {peer['torch']}, {peer['isa']}, {peer.get('cpu', 'this CPU')}\n")
    print("| concurrency | transformers tokens/s | at | Sluice tokens/s | at | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for r in peer["runs"]:
        best = max(ours[r["concurrency"]], key=ours[r["concurrency"]].get)
        rate = ours[r["concurrency"]][best]
        setting = ", ".join(f"{k} {v}" for k, v in r["setting"].items())
        ratio = rate / r["tokens_per_second"]
        print(f"| {r['concurrency']} | {r['tokens_per_second']:,.0f} | {setting} | {rate:,.0f} | `{best}` | **{ratio:.1f}** |")
    print()


def big(agent, python, directory, repeats):
    """One sequence of a model that no cache holds."""
    peer = run(python, "llamacpp_bench.py", directory)
    before = max(peer["dram_read_bytes_per_second"].values())
    prompt, tokens = len(peer["prompt_ids"]), 64
    with Server(agent, ["--model", f"{directory}/hf", "--layout", "hybrid", "--attention-ranks", "1"]) as server:
        load = ("-c", 1, "-n", 4, "--input-len", prompt, "--output-len", tokens)
        reports = [bench(agent, server.url, *load) for _ in range(repeats)]
    whole = statistics.median(r["tokens"]["output_per_second"] for r in reports)
    decode = statistics.median(1 / r["inter_token"]["mean"] for r in reports)
    # Others of the same host come and go: the bound is what was to be had at the best of three times.
    bandwidth = max(before, read_bandwidth(os.cpu_count() or 1))
    bound = bandwidth / peer["bytes_per_token"]["total"]
    print(
        f"{peer['model_bytes'] / 1e9:.1f} GB of weights, {peer['bytes_per_token']['total'] / 1e6:.0f} MB touched per token, "
        f"DRAM read {bandwidth / 1e9:.1f} GB/s: at most {bound:.1f} tokens/s. Prompt {prompt}, {tokens} tokens out.\n"
    )
    print("| | tokens/s | of the bound |")
    print("| --- | --- | --- |")
    for r in peer["runs"]:
        print(f"| llama.cpp, {r.get('threads')} threads | {r['tokens_per_second']:.1f} | {r['tokens_per_second'] / bound:.2f} |")
    print(f"| Sluice, between tokens | {decode:.1f} | **{decode / bound:.2f}** |")
    print(f"| Sluice, the whole request with its prompt, over HTTP | {whole:.1f} | {whole / bound:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default=str(ROOT / "target" / "release" / "sluice-agent"))
    parser.add_argument("--transformers", help="a Python with ../fixtures/requirements.txt")
    parser.add_argument("--llama", help="a Python with requirements.txt")
    parser.add_argument("--big", default="/tmp/big-moe", help="where the large model is or shall be (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="transformers without torch.compile, which takes minutes")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many runs (default 3)")
    arguments = parser.parse_args()
    if arguments.transformers:
        tiny(arguments.agent, arguments.transformers, arguments.quick, arguments.repeats)
    if arguments.llama:
        big(arguments.agent, arguments.llama, arguments.big, arguments.repeats)


if __name__ == "__main__":
    main()
