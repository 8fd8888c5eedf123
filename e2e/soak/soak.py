#!/usr/bin/env python3
"""A mixed load for as long as you like: does the agent lose anything, and does its memory grow?

Clients stream and do not stream, chat and complete, ask for several choices, for schemas, for too much, for nonsense,
go away in mid-stream and set deadlines that pass. Afterwards:
- every request ended as it should have, as its client saw it;
- the agent's own count of sequences in equals its count out, cause by cause, and both equal the clients' count;
- nothing is left: no sequence, no KV page, no connection, no file descriptor;
- the resident memory is flat: its median in the last quarter against that in the second.

    cargo build --release -p sluice-agent
    e2e/soak/soak.py --duration 60                # a minute, as in CI
    e2e/soak/soak.py --duration 3600 --report soak.json
    e2e/soak/soak.py -- --layout hybrid --attention-ranks 2     # other flags for the server

Needs Python 3.9 and nothing else. Exits with 1 and says why if anything is not as it should be.
"""

import argparse
import collections
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Small enough for waiting, preemption and refusal to happen all the time.
FLAGS = (
    "--layout disaggregated --attention-ranks 2 --expert-workers 2 --slices 2 --waves 2 --kv-tokens 1280 "
    "--prefill-chunk 64 --max-sequences 12 --max-queue 8 --max-choices 8 --max-concurrency 64 --request-timeout 60s"
).split()
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Unexpected(Exception):
    """An answer that no client should get."""


class Tally:
    """What the clients saw, counted in sequences (choices)."""

    def __init__(self):
        self.lock = threading.Lock()
        self.requests = collections.Counter()
        self.sequences = collections.Counter()
        self.tokens = 0
        self.wrong = collections.Counter()

    def add(self, kind, outcome, sequences, tokens=0):
        with self.lock:
            self.requests[kind, outcome] += 1
            self.sequences[outcome] += sequences
            self.tokens += tokens

    def complain(self, kind, what):
        with self.lock:
            self.wrong[f"{kind}: {what}"] += 1


class Client(threading.Thread):
    def __init__(self, port, prompts, tally, stop, seed):
        super().__init__(daemon=True)
        self.port, self.prompts, self.tally, self.stop = port, prompts, tally, stop
        self.random = random.Random(seed)
        self.connection = None

    def run(self):
        kinds = [(9, self.chat), (9, self.completion), (3, self.ids), (3, self.schema), (3, self.cancel), (2, self.deadline),
                 (3, self.bad), (1, self.other)]
        weights, makers = zip(*kinds)
        while not self.stop.is_set():
            kind = self.random.choices(makers, weights)[0]
            try:
                kind()
            except Unexpected as error:
                self.tally.complain(kind.__name__, str(error))
                self.drop()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.tally.complain(kind.__name__, f"{type(error).__name__}: {error}")
                self.drop()

    def drop(self):
        if self.connection:
            self.connection.close()
        self.connection = None

    def post(self, path, body, headers=None):
        if self.connection is None or self.random.random() < 0.1:
            self.drop()
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request("POST", path, data, {"content-type": "application/json", **(headers or {})})
        return self.connection.getresponse()

    def prompt(self):
        return self.random.choice(self.prompts)

    def sampling(self):
        if self.random.random() < 0.5:
            return {"temperature": 0}
        return {"temperature": 0.8, "top_p": 0.9, "seed": self.random.getrandbits(32), "presence_penalty": 0.3}

    def length(self):
        return self.random.choice([1, 4, 16, 16, 32, 64, 128])

    def chat(self):
        body = {"messages": [{"role": "user", "content": self.prompt()}], "max_completion_tokens": self.length(), **self.sampling()}
        self.ask("chat", "/v1/chat/completions", body, self.random.random() < 0.6)

    def completion(self):
        body = {"prompt": self.prompt(), "max_tokens": self.length(), "n": self.random.choice([1, 1, 2, 3]), **self.sampling()}
        if self.random.random() < 0.3:
            body["stop"] = ["e", " the"]
        if self.random.random() < 0.3:
            body["ignore_eos"] = True
        self.ask("completion", "/v1/completions", body, self.random.random() < 0.6)

    def ids(self):
        ids = [self.random.randrange(4, 4000) for _ in range(self.random.choice([3, 40, 200, 500]))]
        body = {"prompt": ids, "max_tokens": self.length(), "ignore_eos": True, "return_token_ids": True, **self.sampling()}
        self.ask("ids", "/v1/completions", body, True)

    def schema(self):
        body = {"messages": [{"role": "user", "content": self.prompt()}], "max_completion_tokens": 64, **self.sampling(),
                "response_format": {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}}
        self.ask("schema", "/v1/chat/completions", body, self.random.random() < 0.5)

    def deadline(self):
        body = {"prompt": self.prompt(), "max_tokens": 700, "ignore_eos": True, "temperature": 0}
        timeout = self.random.choice(["0.02", "0.2", "0.5"])
        self.ask("deadline", "/v1/completions", body, self.random.random() < 0.5, {"x-request-timeout": timeout})

    def ask(self, kind, path, body, stream, headers=None):
        n = body.get("n", 1)
        if stream:
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        response = self.post(path, body, headers)
        if response.status != 200:
            return self.refused(kind, response, n)
        if not stream:
            answer = json.loads(response.read())
            if [c["finish_reason"] for c in answer["choices"]].count(None) or len(answer["choices"]) != n:
                raise Unexpected("a choice without an end")
            return self.tally.add(kind, "complete", n, answer["usage"]["completion_tokens"])
        finished, usage, done = 0, None, False
        for event in events(response):
            if event == "[DONE]":
                done = True
                continue
            event = json.loads(event)
            if "error" in event:
                return self.ended(kind, event["error"], response, n)
            finished += sum(c.get("finish_reason") is not None for c in event["choices"])
            usage = event.get("usage") or usage
        if not done or finished != n or usage is None:
            raise Unexpected(f"a stream with {finished} of {n} ends, usage {usage is not None}, [DONE] {done}")
        self.tally.add(kind, "complete", n, usage["completion_tokens"])

    def ended(self, kind, error, response, n):
        response.read()
        if error.get("code") != "deadline_exceeded":
            raise Unexpected(f"a stream ended in {error}")
        # Of several choices some may have been complete; only single ones are asked with a deadline.
        self.tally.add(kind, "deadline", n)

    def refused(self, kind, response, n):
        text = response.read()
        error = json.loads(text)["error"]
        if response.status in (429, 503):
            if not response.getheader("retry-after"):
                raise Unexpected(f"{response.status} without Retry-After")
            time.sleep(self.random.uniform(0.02, 0.2))
            return self.tally.add(kind, "refused", n)
        if response.status == 504 and error["code"] == "deadline_exceeded":
            return self.tally.add(kind, "deadline", n)
        raise Unexpected(f"status {response.status}: {error['message']}")

    def cancel(self):
        body = {"prompt": self.prompt(), "max_tokens": 500, "ignore_eos": True, "stream": True, "temperature": 0}
        response = self.post("/v1/completions", body)
        if response.status != 200:
            return self.refused("cancel", response, 1)
        left = self.random.choice([1, 1, 5, 20])
        for event in events(response):
            if event != "[DONE]" and "error" in json.loads(event):
                raise Unexpected(f"a stream ended in {event}")
            left -= 1
            if left == 0:
                break
        self.tally.add("cancel", "cancelled", 1)
        # Closing a socket with unread data resets it, as a client that was killed does.
        self.drop()

    def bad(self):
        prompt = self.prompt()
        cases = [
            (400, b"{\"prompt\": "),
            (400, {"prompt": prompt, "temperature": -1}),
            (400, b"{\"prompt\": \"x\", \"temperature\": NaN}"),
            (404, {"prompt": prompt, "model": "no-such-model"}),
            (400, {"prompt": [5] * 5000}),
            (400, {"prompt": [4_000_000]}),
            (400, {"prompt": prompt, "max_tokens": 1_000_000}),
            (400, {"prompt": []}),
        ]
        status, body = self.random.choice(cases)
        response = self.post("/v1/completions", body)
        text = response.read()
        if response.status == 429:
            return self.tally.add("bad", "refused", 0)
        if response.status != status or "error" not in json.loads(text):
            raise Unexpected(f"case {cases.index((status, body))} gave {response.status}: {text[:80]!r}")
        self.tally.add("bad", "bad", 0)

    def other(self):
        response = self.post("/tokenize", {"prompt": self.prompt()})
        if response.status not in (200, 429):
            raise Unexpected(f"/tokenize gave {response.status}")
        response.read()
        self.tally.add("other", "page", 0)


def events(response):
    """The data of each server-sent event."""
    for line in response:
        if line.startswith(b"data:"):
            yield line[5:].strip().decode()


def free_ports(n):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def scrape(admin):
    """Samples of /metrics by name, then by their labels."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=20).read().decode()
    samples = collections.defaultdict(dict)
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
            samples[name][labels or ""] = float(value)
    return samples


def total(samples, name, labels=""):
    return sum(v for k, v in samples[name].items() if labels in k)


def resident(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def wait_ready(server, admin, patience):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode} before it was ready")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=2)
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server was not ready in time")


def slope(points):
    """MiB per hour, by least squares."""
    mean_x = statistics.fmean(x for x, _ in points)
    mean_y = statistics.fmean(y for _, y in points)
    below = sum((x - mean_x) ** 2 for x, _ in points)
    return 3600 * sum((x - mean_x) * (y - mean_y) for x, y in points) / below if below else 0.0


def at_rest(admin, pid, fds, patience=30):
    """The first page on which nothing is under way, or the last one there was."""
    end = time.monotonic() + patience
    while True:
        samples = scrape(admin)
        open_files = len(os.listdir(f"/proc/{pid}/fd"))
        rest = (total(samples, "sluice_sequences") == 0 and total(samples, "sluice_kv_used_pages") == 0
                and total(samples, "sluice_http_connections") == 0 and open_files <= fds)
        if rest or time.monotonic() > end:
            return samples, open_files
        time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--agent", default=os.environ.get("SLUICE_AGENT")
                        or Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release/sluice-agent")
    parser.add_argument("--growth", type=float, default=0.1, help="of resident memory, at most (default: 0.1, a tenth)")
    parser.add_argument("--report", metavar="FILE", help="also write the result as JSON")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help=f"for the server (default: {' '.join(FLAGS)})")
    args = parser.parse_args()
    lines = (ROOT / "e2e/traces/prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"][:600] for line in lines]
    listen, admin = free_ports(2)
    log = tempfile.NamedTemporaryFile("w+", prefix="soak-", suffix=".log", delete=False)
    command = [str(args.agent), "serve", "--listen", f"127.0.0.1:{listen}", "--admin-listen", f"127.0.0.1:{admin}",
               *(args.flags or FLAGS)]
    server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "RUST_LOG": "warn"})
    problems = []
    try:
        wait_ready(server, admin, 600)
        fds = len(os.listdir(f"/proc/{server.pid}/fd"))
        tally, stop = Tally(), threading.Event()
        clients = [Client(listen, prompts, tally, stop, f"{args.seed}/{i}") for i in range(args.clients)]
        begin = time.monotonic()
        for client in clients:
            client.start()
        memory = []
        while (now := time.monotonic() - begin) < args.duration and server.poll() is None:
            memory.append((now, resident(server.pid)))
            time.sleep(min(1.0, args.duration / 50))
        stop.set()
        for client in clients:
            client.join(timeout=150)
            if client.is_alive():
                problems.append("a client hangs")
            client.drop()
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode} under load; its log: {log.name}")
        samples, open_files = at_rest(admin, server.pid, fds)
        problems += [f"{n} x {what}" for what, n in tally.wrong.items()]
        problems += compare(samples, tally, open_files, fds)
        quarter = len(memory) // 4
        early = statistics.median(m for _, m in memory[quarter:2 * quarter] or memory)
        late = statistics.median(m for _, m in memory[3 * quarter:] or memory)
        if late > early * (1 + args.growth) + 4:
            problems.append(f"resident memory grew from {early:.1f} to {late:.1f} MiB")
        server.send_signal(signal.SIGTERM)
        if server.wait(timeout=90) != 0:
            problems.append(f"the server ended with {server.returncode} after SIGTERM")
        report = result(args, samples, tally, memory, early, late, open_files, fds, problems)
        show(report)
        if args.report:
            Path(args.report).write_text(json.dumps(report, indent=1) + "\n")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    if problems:
        print(f"the server's log: {log.name}", file=sys.stderr)
        raise SystemExit(1)
    os.unlink(log.name)


OUTCOMES = ("complete", "cancelled", "refused", "deadline", "cut")


def ended(samples, outcome):
    return int(total(samples, "sluice_sequences_ended_total", f'outcome="{outcome}"'))


def compare(samples, tally, open_files, fds):
    problems = []
    received = int(total(samples, "sluice_sequences_received_total"))
    out = {o: ended(samples, o) for o in OUTCOMES}
    seen = tally.sequences
    if received != sum(out.values()):
        problems.append(f"{received} sequences came in and {sum(out.values())} went out")
    # A client that goes away may be a moment too late, or its sequence may be handed an end at the same time.
    late = out["complete"] - seen["complete"]
    if not 0 <= late <= seen["cancelled"]:
        problems.append(f"the clients saw {seen['complete']} complete, the agent counts {out['complete']}")
    if out["complete"] + out["cancelled"] + out["deadline"] != seen["complete"] + seen["cancelled"] + seen["deadline"]:
        problems.append(f"the clients' ends {dict(seen)} are not the agent's {out}")
    # A deadline can pass at the gateway and at the front at the same moment.
    if abs(out["deadline"] - seen["deadline"]) > out["cancelled"]:
        problems.append(f"the clients saw {seen['deadline']} deadlines, the agent counts {out['deadline']}")
    if out["cut"]:
        problems.append(f"{out['cut']} sequences were cut")
    if out["refused"] > seen["refused"]:
        problems.append(f"the clients saw {seen['refused']} refused, the agent counts {out['refused']}")
    for name in ("sluice_sequences", "sluice_kv_used_pages", "sluice_http_connections"):
        if total(samples, name):
            problems.append(f"{name} is {total(samples, name):.0f} at rest")
    if total(samples, "sluice_bad_frames_total"):
        problems.append("workers sent frames that make no sense")
    if open_files > fds:
        problems.append(f"{open_files} files are open, {fds} were before the load")
    return problems


def result(args, samples, tally, memory, early, late, open_files, fds, problems):
    values = [m for _, m in memory]
    return {
        "duration_s": args.duration,
        "clients": args.clients,
        "seed": args.seed,
        "requests": {f"{kind}/{outcome}": n for (kind, outcome), n in sorted(tally.requests.items())},
        "sequences_seen": dict(tally.sequences),
        "sequences_in": int(total(samples, "sluice_sequences_received_total")),
        "sequences_out": {o: ended(samples, o) for o in OUTCOMES},
        "tokens": int(total(samples, "sluice_generated_tokens_total")),
        "on_the_way": {
            name: int(total(samples, f"sluice_{name}_total"))
            for name in ("preemptions", "hand_backs", "credit_stalls", "urgent_releases", "late_tokens", "duplicate_returns",
                         "prefix_hit_tokens")
        },
        "open_files": {"before": fds, "after": open_files},
        "resident_mib": {
            "min": min(values), "median": statistics.median(values), "max": max(values), "second_quarter": early,
            "last_quarter": late, "slope_per_hour": slope(memory[len(memory) // 4:]),
        },
        "problems": problems,
    }


def show(r):
    print(f"mixed load: {r['duration_s']:.0f} s, {r['clients']} clients, seed {r['seed']}")
    print(f"requests    {sum(r['requests'].values())}: " + ", ".join(f"{k} {n}" for k, n in r["requests"].items()))
    out = r["sequences_out"]
    print(f"sequences   in {r['sequences_in']} = out {sum(out.values())}: " + ", ".join(f"{k} {n}" for k, n in out.items()))
    print(f"tokens      {r['tokens']}; " + ", ".join(f"{k.replace('_', ' ')} {n}" for k, n in r["on_the_way"].items()))
    m = r["resident_mib"]
    print(f"resident    min {m['min']:.1f}, median {m['median']:.1f}, max {m['max']:.1f} MiB; second quarter {m['second_quarter']:.1f}, "
          f"last {m['last_quarter']:.1f}; slope {m['slope_per_hour']:+.1f} MiB an hour after the first quarter")
    print(f"open files  {r['open_files']['before']} before, {r['open_files']['after']} after")
    for problem in r["problems"]:
        print(f"PROBLEM     {problem}")
    print("no problem" if not r["problems"] else f"{len(r['problems'])} problems")


if __name__ == "__main__":
    main()
