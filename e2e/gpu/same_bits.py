#!/usr/bin/env python3
"""Whether a server on a GPU answers the same bits however it is laid out, and what transformers answers.

    e2e/gpu/same_bits.py [--agent target/release/sluice-agent] [--backend cuda]

Needs an agent that was built with --features cuda, and a GPU. 64 requests, half greedy and half sampled with seeds, top-p
and penalties, prompts of up to five times those of models/tiny-moe/reference.json, texts and log-probabilities compared
over layouts, schedulers, replicas, slices, prefill chunks and numbers of clients. Then the 26 prompts of reference.json:
64 tokens each, greedily, in bf16 here and in f32 there. Ends with an error if any bit differs, not if a text does.
"""

import argparse
import hashlib
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

TOP = pathlib.Path(__file__).resolve().parents[2]
MODEL = TOP / "models/tiny-moe"
REQUESTS = 64
# Flags, and how many clients ask at a time.
SETTINGS = [
    ([], 1),
    ([], 64),
    (["--prefill-chunk", "1"], 16),
    (["--layout", "disaggregated", "--attention-ranks", "2", "--expert-workers", "4"], 32),
    (["--layout", "disaggregated", "--attention-ranks", "2", "--expert-workers", "4", "--replicas", "2"], 64),
    (["--layout", "disaggregated", "--expert-workers", "2", "--scheduler", "defrag"], 64),
    (["--layout", "disaggregated", "--expert-workers", "2", "--scheduler", "mtfs"], 64),
    (["--layout", "disaggregated", "--expert-workers", "2", "--scheduler", "flfs"], 64),
    (["--layout", "disaggregated", "--expert-workers", "2", "--scheduler", "sync"], 64),
    (["--segments", "8", "--layout", "disaggregated", "--expert-workers", "8"], 64),
    (["--segments", "8", "--layout", "disaggregated", "--expert-workers", "8", "--slices", "2"], 64),
    (["--segments", "8", "--layout", "disaggregated", "--expert-workers", "8", "--slices", "8"], 64),
]


class Server:
    """A server on a free port, for as long as the block lasts."""

    def __init__(self, options, flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [options.agent, "serve", "--backend", options.backend, "--model", str(MODEL)]
        command += ["--served-model-name", "tiny-moe", "--listen", self.address, *flags]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://{self.address}/v1/models", timeout=5).read()
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.log.seek(0)
        raise SystemExit(f"no server: {self.log.read().decode(errors='replace')[-500:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def post(self, path, body):
        request = urllib.request.Request(
            f"http://{self.address}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]


def digest(server, prompts, clients):
    def ask(i):
        sampled = i % 2 == 0
        body = {
            "model": "tiny-moe",
            "prompt": prompts[i % len(prompts)] * (1 + i % 5),
            "max_tokens": 48,
            "temperature": 0.9 if sampled else 0,
            "top_p": 0.95,
            "seed": i,
            "presence_penalty": 0.3 * (i % 3),
            "logprobs": 3,
        }
        choice = server.post("/v1/completions", body)
        return json.dumps([choice["text"], choice["logprobs"]])

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(REQUESTS)))
    return hashlib.sha256("\n".join(answers).encode()).hexdigest()[:16]


def compare_with_reference(server, references):
    """Prompts with the same text, and of the others the reference's smallest margin between its first two tokens."""
    same, others = 0, []
    for one in references:
        body = {"model": "tiny-moe", "prompt": one["prompt_ids"], "max_tokens": 64, "temperature": 0}
        body |= {"ignore_eos": True, "skip_special_tokens": False}
        text = server.post("/v1/completions", body)["text"]
        if text == one["greedy_text"]:
            same += 1
        else:
            others.append(one["min_top1_margin"])
    return same, others


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent", default=str(TOP / "target/release/sluice-agent"))
    parser.add_argument("--backend", default="cuda")
    options = parser.parse_args()
    references = json.loads((MODEL / "reference.json").read_text())["references"]
    prompts = [one["prompt"] for one in references]
    first, wrong = None, 0
    for flags, clients in SETTINGS:
        with Server(options, flags) as server:
            bits = digest(server, prompts, clients)
            first = first or bits
            wrong += bits != first
            verdict = "the same bits" if bits == first else "OTHER BITS"
            print(f"{verdict}: {bits}  {clients:2} clients  {' '.join(flags) or '(hybrid, one worker)'}", flush=True)
    with Server(options, []) as server:
        same, others = compare_with_reference(server, references)
    print(f"{same} of {len(references)} prompts with transformers' own 64 tokens (f32)")
    if others:
        print(f"the others part where two tokens are close: margins of at most {max(others):.3f} of a logit")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
