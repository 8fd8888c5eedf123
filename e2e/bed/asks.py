"""The requests: greedy, sampled with penalties, several unseeded choices, and json_schema, in turn, decided by a seed."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).resolve().parents[1] / "traces" / "prompts.jsonl"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "likes": {"type": "array", "items": {"enum": ["tea", "chess", "rain"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
# From so many tokens on a prompt is long; a third of the prompts are.
LONG = 200


@dataclass(frozen=True)
class Ask:
    """One request."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def choices(self) -> int:
        return self.body.get("n", 1)

    def seeded(self, seed: int) -> "Ask":
        """The same with the seed that its answer named, so that it can be asked again."""
        return Ask(self.kind, self.path, {**self.body, "seed": seed})


class Prompts:
    """Prompts of at most so many tokens, short ones and long ones apart."""

    def __init__(self, lines: list[dict[str, Any]], most: int):
        fit = [line for line in lines if line["chat_tokens"] <= most]
        self.short = [line["prompt"] for line in fit if line["chat_tokens"] < LONG]
        self.long = [line["prompt"] for line in fit if line["chat_tokens"] >= LONG] or self.short
        if not self.short:
            raise ValueError(f"no prompt has at most {most} tokens")

    @classmethod
    def read(cls, most: int) -> "Prompts":
        return cls([json.loads(line) for line in PROMPTS.read_text().splitlines()], most)

    def draw(self, of: random.Random) -> str:
        return of.choice(self.long if of.random() < 1 / 3 else self.short)


def ask(prompts: Prompts, kinds: tuple[str, ...], tokens: tuple[int, int], seed: str, index: int) -> Ask:
    """Request `index` of a load: the same for the same seed, whichever client sends it."""
    of = random.Random(f"{seed}/{index}")
    kind = kinds[index % len(kinds)]
    prompt, most = prompts.draw(of), of.randint(*tokens)
    common = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    text = {"prompt": prompt, "max_tokens": most, "logprobs": 1, **common}
    chat = {"messages": [{"role": "user", "content": prompt}], "logprobs": True, "top_logprobs": 1, **common}
    if kind == "plain":
        # For modelled devices, which have no log-probabilities.
        return Ask(kind, "/v1/completions", {"prompt": prompt, "max_tokens": most, **common, "temperature": 0, "ignore_eos": True})
    if kind == "greedy":
        return Ask(kind, "/v1/completions", {**text, "temperature": 0, "ignore_eos": True})
    if kind == "sampled":
        sampling = {"temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.4, "frequency_penalty": 0.3,
                    "repetition_penalty": 1.1, "seed": of.getrandbits(48)}
        return Ask(kind, "/v1/chat/completions", {**chat, "max_completion_tokens": most, "ignore_eos": True, **sampling})
    if kind == "choices":
        return Ask(kind, "/v1/completions", {**text, "temperature": 1.0, "n": 2})
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    sampling = {"temperature": 0.7, "seed": of.getrandbits(48)}
    return Ask(kind, "/v1/chat/completions", {**chat, "max_completion_tokens": 96, "response_format": form, **sampling})
