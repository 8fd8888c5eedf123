"""One streamed request over a connection of its own, and what it brought, token by token."""

import asyncio
import json
import time
from array import array
from dataclasses import dataclass, field
from typing import Any, AsyncIterator

from asks import Ask


class Refused(Exception):
    """429 or 503: come again. `after` is what the server says, in seconds."""

    def __init__(self, status: int, after: float, text: str):
        super().__init__(f"{status}: {text}")
        self.status, self.after = status, after


class Unreachable(Exception):
    """No connection came about."""


class Broken(Exception):
    """The connection ended before the answer did. `begun` if any of the answer had come."""

    def __init__(self, what: str, begun: bool):
        super().__init__(what)
        self.begun = begun


class Failed(Exception):
    """An answer that no client should get."""


@dataclass
class Choice:
    """What is compared of a choice: exactly as printed, log-probabilities included."""

    ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[str] = field(default_factory=list)
    finish: str | None = None
    # When each token came.
    times: array = field(default_factory=lambda: array("d"))

    def printed(self) -> tuple:
        return tuple(self.ids), "".join(self.text), tuple(self.logprobs), self.finish


@dataclass
class Answer:
    choices: list[Choice]
    seed: int | None = None
    fingerprints: set[str] = field(default_factory=set)
    usage: dict[str, Any] | None = None


async def stream(address: str, port: int, ask: Ask, patience: float) -> Answer:
    """The whole answer; `patience` is how long it may take."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port, limit=1 << 20), 5)
    except (OSError, asyncio.TimeoutError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    answer = Answer([Choice() for _ in range(ask.choices)])
    begun = asyncio.Event()
    try:
        body = json.dumps(ask.body).encode()
        head = (f"POST {ask.path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n"
                f"content-length: {len(body)}\r\n\r\n")
        writer.write(head.encode() + body)
        await asyncio.wait_for(_read(reader, ask, answer, begun), patience)
    except asyncio.TimeoutError as error:
        raise Failed(f"no end within {patience:.0f} s") from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Broken(f"{type(error).__name__}: {error}", begun.is_set()) from error
    finally:
        writer.close()
    return answer


async def _read(reader: asyncio.StreamReader, ask: Ask, answer: Answer, begun: asyncio.Event) -> None:
    status, headers = await _head(reader)
    begun.set()
    if status != 200:
        text = await _body(reader, headers)
        if status in (429, 503):
            raise Refused(status, float(headers.get("retry-after", "1")), text)
        raise Failed(f"status {status}: {text}")
    done = False
    async for event in _events(reader):
        if event == b"[DONE]":
            done = True
            continue
        # Numbers stay as they are printed: equal bits and nothing else give equal text.
        take(answer, json.loads(event, parse_float=str), time.monotonic())
    if not done:
        raise Broken("the stream ended without [DONE]", True)
    check(answer, "logprobs" in ask.body)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    line = await reader.readline()
    if not line.startswith(b"HTTP/1.1 "):
        raise Broken(f"no answer: {line[:80]!r}", False)
    headers = {}
    while (field := (await reader.readline()).strip()):
        name, _, value = field.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(line.split()[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> str:
    if "content-length" in headers:
        data = await reader.readexactly(int(headers["content-length"]))
    else:
        data = await reader.read()
    text = data.decode(errors="replace")
    try:
        return json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return text[:200]


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Data of server-sent events in a chunked body."""
    rest = b""
    while (size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)):
        rest += (await reader.readexactly(size + 2))[:-2]
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def take(answer: Answer, event: dict[str, Any], now: float) -> None:
    """One event, of either endpoint."""
    if "error" in event:
        raise Failed(f"the stream ended in {event['error'].get('code')}: {event['error'].get('message')}")
    answer.usage = event.get("usage") or answer.usage
    answer.seed = event.get("seed", answer.seed)
    if event.get("system_fingerprint") is not None:
        answer.fingerprints.add(event["system_fingerprint"])
    for part in event["choices"]:
        choice = answer.choices[part["index"]]
        ids = part.get("token_ids") or []
        choice.ids += ids
        choice.times.extend([now] * len(ids))
        choice.text.append(part["text"] if "text" in part else part["delta"].get("content") or "")
        choice.logprobs += entries(part.get("logprobs"))
        choice.finish = part.get("finish_reason") or choice.finish


def entries(logprobs: dict[str, Any] | None) -> list[str]:
    """One text per token, however many tokens an event has."""
    if not logprobs:
        return []
    if "content" in logprobs:
        return [json.dumps(one, sort_keys=True) for one in logprobs["content"] or []]
    columns = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return [json.dumps(one) for one in zip(*(logprobs[column] for column in columns))]


def check(answer: Answer, logprobs: bool) -> None:
    """A whole answer contradicts itself nowhere."""
    for i, choice in enumerate(answer.choices):
        if choice.finish is None:
            raise Failed(f"choice {i} has no finish_reason")
        if len(choice.logprobs) != logprobs * len(choice.ids):
            raise Failed(f"choice {i} has {len(choice.ids)} tokens and {len(choice.logprobs)} log-probabilities")
    if answer.usage is None:
        raise Failed("no usage")
    produced = sum(len(choice.ids) for choice in answer.choices)
    if answer.usage["completion_tokens"] != produced:
        raise Failed(f"usage says {answer.usage['completion_tokens']} tokens, {produced} came")
    if answer.seed is None or len(answer.fingerprints) != 1:
        raise Failed(f"seed {answer.seed}, fingerprints {sorted(answer.fingerprints)}")
