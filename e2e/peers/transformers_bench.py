#!/usr/bin/env python3
"""Throughput of transformers on this CPU, at its best setting, as JSON on standard output.

    python transformers_bench.py ../../models/tiny-moe --concurrency 1 32 --write-requests /tmp/requests.jsonl

At concurrency C the requests run in static batches of C, sorted by length, which favours transformers: no request waits
to be admitted, all of a batch have one output length, and prompts of like length are computed together. Sampling is greedy and goes on
past the end of sequence. The clock runs from the first prefill to the last token; the weights are loaded and the code is
compiled before.

First every setting is tried on a part of the requests: threads, dtype, implementation of attention and of the experts,
`generate` or a bare loop over `forward`, and torch.compile of the decode step, which needs a static cache. Then the best
runs the whole. All tries are in the JSON.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# glibc returns large blocks to the system at once by default; the page faults then cost as much as the arithmetic.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_TOP_PAD_": str(1 << 28)}
if __name__ == "__main__" and any(key not in os.environ for key in ALLOCATOR):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache  # noqa: E402

from workload import Request, from_prompts, machine, read_requests, write_requests  # noqa: E402

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Setting:
    threads: int = 2
    dtype: str = "float32"
    attention: str = "sdpa"
    experts: str = "grouped_mm"
    loop: str = "forward"  # or "generate"
    cache: str = "dynamic"  # or "static"
    compile: bool = False  # the decode step; not frozen, which takes the cache for a constant


PREFILL_EXPERTS = {"batched_mm": "grouped_mm"}


def padded_ids(requests: list[Request], width: int) -> torch.Tensor:
    return torch.tensor([[0] * (width - len(r.prompt_ids)) + r.prompt_ids for r in requests])


def padding_mask(requests: list[Request], width: int) -> torch.Tensor:
    return torch.tensor([[0] * (width - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in requests])


def groups_of_like_length(requests: list[Request]) -> list[list[Request]]:
    """Cuts requests that are sorted by length where padding would add more than a quarter and 8 tokens."""
    groups: list[list[Request]] = []
    for request in requests:
        if groups and len(request.prompt_ids) <= 1.25 * len(groups[-1][0].prompt_ids) + 8:
            groups[-1].append(request)
        else:
            groups.append([request])
    return groups


class Runner:
    """One loaded model under one setting."""

    def __init__(self, directory: Path, setting: Setting, context: int):
        self.setting = setting
        self.context = context
        torch._dynamo.reset()
        torch.set_num_threads(setting.threads)
        self.model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, setting.dtype),
            attn_implementation=setting.attention,
            experts_implementation=setting.experts,
        ).eval()
        self.decode = self.model.forward
        if setting.compile:
            self.decode = torch.compile(self.model.forward, dynamic=False)

    def new_cache(self):
        if self.setting.cache == "dynamic":
            return DynamicCache(config=self.model.config)
        return StaticCache(config=self.model.config, max_cache_len=self.context)

    @torch.inference_mode()
    def batch(self, requests: list[Request]) -> list[list[int]]:
        """Greedy continuations of a batch whose output lengths are equal."""
        steps = requests[0].max_tokens
        assert all(r.max_tokens == steps for r in requests), "a static batch has one output length"
        if self.setting.loop == "generate":
            return self.generate(requests, steps)
        width = max(len(r.prompt_ids) for r in requests)
        token, cache = self.prefill(requests, width)
        mask = padding_mask(requests, width)
        padded = bool((mask == 0).any())
        if self.setting.cache == "static":
            # A mask of constant width, so that the decode step is compiled once.
            mask = torch.nn.functional.pad(mask, (0, self.context - width), value=1)
        positions = torch.tensor([[len(r.prompt_ids) - 1] for r in requests])
        produced = [token]
        for _ in range(steps - 1):
            positions = positions + 1
            if self.setting.cache == "dynamic":
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = self.decode(
                input_ids=token,
                attention_mask=mask if padded else None,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
            produced.append(token)
        return torch.cat(produced, dim=1).tolist()

    def generate(self, requests: list[Request], steps: int) -> list[list[int]]:
        width = max(len(r.prompt_ids) for r in requests)
        out = self.model.generate(
            input_ids=padded_ids(requests, width),
            attention_mask=padding_mask(requests, width),
            past_key_values=self.new_cache(),
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            pad_token_id=0,
        )
        return out[:, width:].tolist()

    def prefill(self, requests: list[Request], width: int):
        """First tokens [B, 1], and a cache of the batch, padded on the left to `width`.

        Prompts are computed in groups of like length, so that the longest does not set the price of all."""
        # batched_mm copies the weights of each token's experts: a form for decoding, not for prompts.
        self.model.set_experts_implementation(PREFILL_EXPERTS.get(self.setting.experts, self.setting.experts))
        tokens, keys, values = [], [], []
        for group in groups_of_like_length(requests):
            inner = max(len(r.prompt_ids) for r in group)
            mask = padding_mask(group, inner)
            part = DynamicCache(config=self.model.config)
            logits = self.model(
                input_ids=padded_ids(group, inner),
                attention_mask=mask if bool((mask == 0).any()) else None,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                past_key_values=part,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            tokens.append(logits[:, -1].argmax(-1, keepdim=True))
            left = (0, 0, width - inner, 0)
            keys.append([torch.nn.functional.pad(layer.keys, left) for layer in part.layers])
            values.append([torch.nn.functional.pad(layer.values, left) for layer in part.layers])
        cache = self.new_cache()
        for index, (k, v) in enumerate(zip(zip(*keys), zip(*values))):
            cache.update(torch.cat(k), torch.cat(v), index)
        self.model.set_experts_implementation(self.setting.experts)
        return torch.cat(tokens), cache

    def all(self, requests: list[Request], concurrency: int) -> tuple[float, list[list[int]]]:
        """Seconds, and the continuations in the order of the requests."""
        order = sorted(range(len(requests)), key=lambda i: (requests[i].max_tokens, len(requests[i].prompt_ids)))
        outputs: list = [None] * len(requests)
        began = time.perf_counter()
        for start in range(0, len(order), concurrency):
            part = order[start : start + concurrency]
            for i, tokens in zip(part, self.batch([requests[i] for i in part])):
                outputs[i] = tokens
        return time.perf_counter() - began, outputs


def candidates(best_of, threads: list[int], quick: bool):
    """Settings to try, round by round; each round starts from the best of those before."""
    dtypes, attentions = ["float32", "bfloat16"], ["sdpa", "eager"]
    experts = ["grouped_mm", "batched_mm", "eager"]
    yield [
        Setting(threads=t, dtype=d, experts=e)
        for t, d, e in itertools.product(threads, dtypes, experts)
    ]
    yield [replace(best_of(), attention=a) for a in attentions]
    yield [replace(best_of(), loop="generate")]
    if quick:
        return
    # Compiled, the order of merit of the others may change: try them anew. Experts one by one cannot be compiled.
    base = replace(best_of(), loop="forward", cache="static", compile=True, threads=max(threads))
    yield [
        replace(base, dtype=d, experts=e, attention=a)
        for d, e, a in itertools.product(dtypes, experts[:2], attentions)
    ]
    if best_of().compile:
        yield [replace(best_of(), threads=t) for t in threads]


def agreement(outputs: list[list[int]], expected: list[list[int]]) -> float:
    """Share of equal tokens among the first three of each request: bf16 may part from f32 later, a bug parts at once."""
    pairs = [pair for a, b in zip(outputs, expected) for pair in zip(a[:3], b[:3])]
    return sum(a == b for a, b in pairs) / len(pairs)


def produced_by(requests: list[Request]) -> int:
    return sum(r.max_tokens for r in requests)


def measure(directory: Path, requests: list[Request], concurrency: int, arguments) -> dict:
    context = max(len(r.prompt_ids) + r.max_tokens for r in requests)
    # Evenly over the lengths, as the whole is.
    by_length = sorted(requests, key=lambda r: len(r.prompt_ids))
    wanted = min(len(requests), max(concurrency, arguments.probe))
    probe = [by_length[i * len(by_length) // wanted] for i in range(wanted)]
    tries: dict[Setting, float] = {}
    failed = {}
    expected: list[list[int]] = []

    def best_of() -> Setting:
        return max(tries, key=tries.get)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    threads = sorted({1, os.cpu_count() or 1})
    for settings in candidates(best_of, threads, arguments.quick):
        for setting in settings:
            if setting in tries or setting in failed:
                continue
            try:
                runner = Runner(directory, setting, context)
                runner.all(probe, concurrency)  # warms up, and compiles
                seconds, outputs = runner.all(probe, concurrency)
                expected = expected or outputs
                if (share := agreement(outputs, expected)) < 0.75:
                    raise ArithmeticError(f"only {share:.0%} of the first tokens are those of the first setting")
                if not tries or seconds < 1.3 * produced_by(probe) / tries[best_of()]:
                    seconds = min(seconds, runner.all(probe, concurrency)[0])
            except Exception as error:  # a setting that this version cannot run is a finding, not a failure
                failed[setting] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                say(f"  {setting}: {failed[setting]}")
                continue
            tries[setting] = produced_by(probe) / seconds
            say(f"  {tries[setting]:9.1f} tokens/s  {setting}")
    if not tries:
        raise SystemExit(f"no setting ran: {failed}")
    best = best_of()
    runner = Runner(directory, best, context)
    runner.all(probe, concurrency)
    produced = produced_by(requests)
    seconds = []
    for _ in range(arguments.repeats):
        spent, outputs = runner.all(requests, concurrency)
        assert sum(map(len, outputs)) == produced
        seconds.append(spent)
    return {
        "concurrency": concurrency,
        "tokens_per_second": round(produced / statistics.median(seconds), 1),
        "seconds": [round(s, 3) for s in seconds],
        "requests": len(requests),
        "prompt_tokens": sum(len(r.prompt_ids) for r in requests),
        "output_tokens": produced,
        "setting": asdict(best),
        "tries": [
            {**asdict(s), "tokens_per_second": round(v, 1)} for s, v in sorted(tries.items(), key=lambda x: -x[1])
        ],
        "could_not_run": [{**asdict(s), "error": e} for s, e in failed.items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face directory")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32], help="batch sizes (default 1 32)")
    parser.add_argument("--requests", type=Path, help='lines of {"prompt": [ids], "max_tokens"}; overrides the next three')
    parser.add_argument("--prompts", type=Path, default=HERE.parent / "traces" / "prompts.jsonl", help='lines of {"prompt"}')
    parser.add_argument("--count", type=int, help="requests per concurrency (default 8, or twice the concurrency)")
    parser.add_argument("--max-tokens", type=int, default=128, help="output tokens per request (default 128)")
    parser.add_argument("--probe", type=int, default=4, help="requests per try, at least one batch (default 4)")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many runs is given (default 3)")
    parser.add_argument("--quick", action="store_true", help="without torch.compile, which takes minutes")
    parser.add_argument("--write-requests", type=Path, help="write the requests of the largest run here, for the other side")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where = machine()
    context = AutoConfig.from_pretrained(arguments.model).max_position_embeddings
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    runs, longest = [], []
    for concurrency in arguments.concurrency:
        if arguments.requests:
            requests = read_requests(arguments.requests)
        else:
            count = arguments.count or max(8, 2 * concurrency)
            requests = from_prompts(arguments.prompts, tokenizer, count, arguments.max_tokens, context)
        longest = max(longest, requests, key=len)
        print(f"concurrency {concurrency}: {len(requests)} requests", file=sys.stderr)
        runs.append(measure(arguments.model, requests, concurrency, arguments))
    if arguments.write_requests:
        write_requests(longest, arguments.write_requests)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    isa = torch.backends.cpu.get_cpu_capability()
    print(json.dumps({"peer": "transformers", **versions, "isa": isa, **where, "model": str(arguments.model), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
