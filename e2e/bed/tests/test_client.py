"""The client reads both endpoints' events whatever way they are cut, and believes no answer that contradicts itself."""

import asyncio
import json
import unittest

from asks import Ask, Prompts, ask
from client import Answer, Broken, Choice, Failed, Refused, Unreachable, check, stream, take
from compare import Comparison, by_cohort, differ
from load import Record

ASK = Ask("greedy", "/v1/completions", {"prompt": "x", "logprobs": 1})


def event(index=0, ids=(5,), finish=None, **more):
    logprobs = {"tokens": ["a"] * len(ids), "token_logprobs": [-0.5] * len(ids), "top_logprobs": [{"a": -0.5}] * len(ids),
                "text_offset": list(range(len(ids)))}
    return {"choices": [{"index": index, "text": "a" * len(ids), "token_ids": list(ids), "logprobs": logprobs if ids else None,
                         "finish_reason": finish}], "seed": 7, "system_fingerprint": "fp", **more}


USAGE = {"choices": [], "usage": {"completion_tokens": 3}, "seed": 7, "system_fingerprint": "fp"}


def chunked(payload: bytes, size: int) -> bytes:
    parts = [payload[i:i + size] for i in range(0, len(payload), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def events(*all_events) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in all_events)


class Streams(unittest.IsolatedAsyncioTestCase):
    async def served(self, reply: bytes, patience: float = 5.0) -> Answer:
        async def serve(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.assertEqual(json.loads(await reader.readexactly(length)), ASK.body)
            writer.write(reply)
            if reply.endswith(b"..."):
                # Silence until the client gives up.
                await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await stream("127.0.0.1", server.sockets[0].getsockname()[1], ASK, patience)

    async def test_events_cut_anywhere(self):
        payload = events(event(ids=()), event(), event(ids=(6, 7), finish="stop"), USAGE) + b"data: [DONE]\n\n"
        for size in (1, 7, 64, 10_000):
            answer = await self.served(b"HTTP/1.1 200 OK\r\n\r\n" + chunked(payload, size))
            self.assertEqual(answer.choices[0].ids, [5, 6, 7])
            self.assertEqual(len(answer.choices[0].times), 3)
            self.assertEqual(answer.choices[0].finish, "stop")
            self.assertEqual(answer.seed, 7)

    async def test_an_answer_that_is_cut_is_broken(self):
        whole = b"HTTP/1.1 200 OK\r\n\r\n" + chunked(events(event()) + b"data: [DONE]\n\n", 50)
        for length in (len(whole) - 60, 30, 5, 0):
            with self.assertRaises(Broken) as caught:
                await self.served(whole[:length])
            self.assertEqual(caught.exception.begun, length >= 19)
        with self.assertRaises(Broken):
            await self.served(b"HTTP/1.1 200 OK\r\n\r\n" + chunked(events(event(finish="stop"), USAGE), 50))

    async def test_refusals_errors_and_silence(self):
        with self.assertRaises(Refused) as caught:
            await self.served(b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\ncontent-length: 2\r\n\r\n{}")
        self.assertEqual((caught.exception.status, caught.exception.after), (429, 3.0))
        with self.assertRaisesRegex(Failed, "no such thing"):
            text = b'{"error": {"message": "no such thing"}}'
            await self.served(b"HTTP/1.1 400 Bad\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
        with self.assertRaisesRegex(Failed, "deadline"):
            await self.served(b"HTTP/1.1 200 OK\r\n\r\n" + chunked(events({"error": {"code": "deadline", "message": "late"}}), 50))
        with self.assertRaisesRegex(Failed, "no end"):
            await self.served(b"HTTP/1.1 200 OK\r\n\r\n...", 0.1)

    async def test_nobody_there(self):
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with self.assertRaises(Unreachable):
            await stream("127.0.0.1", port, ASK, 1.0)


def answered(*all_events) -> Answer:
    answer = Answer([Choice()])
    for one in all_events:
        take(answer, json.loads(json.dumps(one), parse_float=str), 0.0)
    return answer


class Whole(unittest.TestCase):
    def refused(self, part, *all_events):
        with self.assertRaisesRegex(Failed, part):
            check(answered(*all_events), True)

    def test_contradictions(self):
        check(answered(event(), event(ids=(6, 7), finish="stop"), USAGE), True)
        self.refused("no finish_reason", event(), event(ids=(6, 7)), USAGE)
        self.refused("usage says 3", event(finish="stop"), USAGE)
        self.refused("no usage", event(finish="stop"))
        self.refused("fingerprints", event(), event(ids=(6, 7), finish="stop"), {**USAGE, "system_fingerprint": "other"})
        bare = event(ids=(6, 7), finish="stop")
        bare["choices"][0]["logprobs"] = None
        self.refused("3 tokens and 1 log", event(), bare, USAGE)
        with self.assertRaisesRegex(Failed, "3 tokens and 3 log"):
            check(answered(event(), event(ids=(6, 7), finish="stop"), USAGE), False)

    def test_chat(self):
        content = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
        answer = answered({"choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": [5], "logprobs": {"content": content}}]})
        self.assertEqual(answer.choices[0].ids, [5])
        self.assertIn('"logprob": "-0.5"', answer.choices[0].logprobs[0])


class Comparing(unittest.TestCase):
    def test_events_may_be_cut_otherwise(self):
        one = answered(event(ids=(5, 6)))
        other = answered(event(ids=(5,)), event(ids=(6,)))
        # The offset of a token's text counts from the beginning of the choice.
        other.choices[0].logprobs[1] = one.choices[0].logprobs[1]
        self.assertEqual(differ(one, other), "")

    def test_every_difference_counts(self):
        base = event(ids=(5, 6), finish="stop")
        self.assertEqual(differ(answered(base), answered(base)), "")
        self.assertIn("token 1 is 6, not 7", differ(answered(base), answered(event(ids=(5, 7), finish="stop"))))
        self.assertIn("2 tokens, not 3", differ(answered(base), answered(event(ids=(5, 6, 7), finish="stop"))))
        self.assertIn("finish_reason", differ(answered(base), answered(event(ids=(5, 6), finish="length"))))
        self.assertIn("seed", differ(answered(base), answered({**base, "seed": 8})))
        printed = event(ids=(5, 6), finish="stop")
        printed["choices"][0]["logprobs"]["token_logprobs"][1] = -0.50000003
        self.assertIn("log-probability of token 1", differ(answered(base), answered(printed)))

    def test_counts(self):
        record = Record("all", 3, ASK, "g0", 0.0, 1.0, "complete", answer=answered(event(finish="stop")))
        found = Comparison()
        found.add(record, answered(event(finish="stop")))
        found.add(record, answered(event(ids=(9,), finish="stop")))
        found.add(record, None, "gone")
        self.assertEqual((found.compared, found.different, found.missing, found.tokens), (2, 1, 1, 2))
        self.assertEqual(len(found.examples), 2)
        self.assertEqual(by_cohort([record]), {"fp": [record]})


class Asking(unittest.TestCase):
    def setUp(self):
        self.prompts = Prompts.read(600)

    def test_a_quarter_of_each_kind_and_the_same_again(self):
        kinds = ("greedy", "sampled", "choices", "schema")
        asks = [ask(self.prompts, kinds, (16, 96), "1/all", i) for i in range(400)]
        self.assertEqual({kind: sum(one.kind == kind for one in asks) for kind in kinds}, dict.fromkeys(kinds, 100))
        self.assertEqual(asks[17], ask(self.prompts, kinds, (16, 96), "1/all", 17))
        self.assertNotEqual(asks[17], ask(self.prompts, kinds, (16, 96), "2/all", 17))
        for one in asks:
            self.assertEqual("seed" in one.body, one.kind in ("sampled", "schema"))
            self.assertEqual(one.choices, 2 if one.kind == "choices" else 1)
        self.assertEqual(asks[2].seeded(9).body, {**asks[2].body, "seed": 9})

    def test_prompts_are_bounded_and_some_are_long(self):
        lines = [{"prompt": str(n), "chat_tokens": n} for n in (10, 150, 300, 600, 601)]
        prompts = Prompts(lines, 600)
        self.assertEqual((prompts.short, prompts.long), (["10", "150"], ["300", "600"]))
        with self.assertRaises(ValueError):
            Prompts(lines, 5)
