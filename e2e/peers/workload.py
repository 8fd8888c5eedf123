"""The requests that every contender of a comparison gets: the same prompt ids, the same output lengths."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    prompt_ids: list[int]
    max_tokens: int


def read_requests(path: Path) -> list[Request]:
    """Lines of `{"prompt": [ids], "max_tokens": n}`, which `sluice-agent bench --prompts` takes too."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [Request(row["prompt"], row["max_tokens"]) for row in rows]


def write_requests(requests: list[Request], path: Path) -> None:
    lines = (json.dumps({"prompt": r.prompt_ids, "max_tokens": r.max_tokens}) for r in requests)
    path.write_text("".join(line + "\n" for line in lines))


def from_prompts(path: Path, tokenizer, count: int, max_tokens: int, context: int) -> list[Request]:
    """`count` chat prompts spread evenly over a file of `{"prompt": ...}` lines, those that fit the context."""
    requests = []
    for line in path.read_text().splitlines():
        message = [{"role": "user", "content": json.loads(line)["prompt"]}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        if len(ids) + max_tokens <= context:
            requests.append(Request(list(ids), max_tokens))
    if len(requests) < count:
        raise SystemExit(f"{path} has {len(requests)} prompts that fit {context} tokens, {count} are wanted")
    return [requests[i * len(requests) // count] for i in range(count)]


def machine() -> dict:
    """What a figure must be read with."""
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    import os

    return {"cpu": model, "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
