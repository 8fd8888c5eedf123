#!/usr/bin/env python3
"""Stands in for `sluice-agent` in tests of the bed: roles with pages, tables, certificates and signals, and no engine.

A gateway's answer is a function of the request and its seed, so that it can be compared. `--lie`, `--tear`, `--cross` and
`--stay` make it misbehave in the way that the bed has to find.
"""

import argparse
import hashlib
import http.server
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    args: argparse.Namespace
    served = 0

    def log_message(self, *_):
        pass

    def page(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Admin(Pages):
    # Whoever sees pressure has shown a certificate.
    trusted = False

    def do_GET(self):
        units = 0
        if self.args.table:
            table = json.loads(Path(self.args.table).read_text())
            units = sum(row["worker"] == self.args.name for part in table["slices"] for row in part["units"])
        if self.path == "/readyz":
            self.page("ok\n")
        elif self.path == "/metrics":
            self.page('sluice_masked_peers_total{worker="0"} 1\nsluice_replays_total 2\n')
        elif not self.trusted and self.args.tls not in (None, "off"):
            self.page("not found\n", 404)
        else:
            worker = {"dispatched": [9, 1, 1, 8] if self.args.role == "attention" else [], "units_serving": units, "units_loading": 0}
            self.page(json.dumps({"workers": [worker]}))


class Peer(Admin):
    trusted = True


class Api(Pages):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body.setdefault("seed", random.getrandbits(40))
        Pages.served += 1
        number = Pages.served
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        chat = "chat" in self.path
        total = 0
        for index in range(body.get("n", 1)):
            of = random.Random(hashlib.sha256(json.dumps([body, index], sort_keys=True).encode()).digest())
            most = body.get("max_tokens") or body["max_completion_tokens"]
            for i in range(most):
                token = of.randrange(4096) + (self.args.lie and number % 5 == 0 and i == most - 1)
                if self.args.tear and number % 5 == 0 and i == most // 2:
                    self.connection.close()
                    return
                total += 1
                self.event(chat, index, token, i == most - 1, body["seed"], number)
                time.sleep(0.002)
        self.chunk({"choices": [], "usage": {"completion_tokens": total}, "seed": body["seed"], "system_fingerprint": self.args.numerics})
        self.write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, chat: bool, index: int, token: int, last: bool, seed: int, number: int) -> None:
        text, logprob = f"{token} ", -token / 1024
        if chat:
            choice = {"delta": {"content": text}, "logprobs": {"content": [{"token": text, "logprob": logprob}]}}
        else:
            choice = {"text": text, "logprobs": {"tokens": [text], "token_logprobs": [logprob], "top_logprobs": [{text: logprob}],
                                                 "text_offset": [0]}}
        choice |= {"index": index, "token_ids": [token], "finish_reason": "length" if last else None}
        cross = self.args.cross and number % 5 == 0 and last
        self.chunk({"choices": [choice], "seed": seed, "system_fingerprint": "other" if cross else self.args.numerics})

    def chunk(self, event: dict) -> None:
        self.write(f"data: {json.dumps(event)}\n\n".encode())

    def write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


class Secure(http.server.ThreadingHTTPServer):
    """With certificates as they are when somebody connects."""

    def finish_request(self, request, address):
        tls = Pages.args.tls
        if tls in (None, "off"):
            return super().finish_request(request, address)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{tls}/ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(f"{tls}/tls.crt", f"{tls}/tls.key")
        with context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, address)

    def handle_error(self, request, address):
        # Who shows no certificate, or shows an old one, is let go.
        pass


def serve(handler: type, at: str, kind: type = http.server.ThreadingHTTPServer) -> http.server.ThreadingHTTPServer:
    host, _, port = at.rpartition(":")
    server = kind((host, int(port)), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> int:
    if sys.argv[1] == "inspect":
        print(json.dumps({"shape": {"blocks": 3, "dense_blocks": 1, "experts": 2}}))
        return 0
    if sys.argv[1] == "plan":
        return 2
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    for flag in ("--name", "--deployment", "--table", "--tls", "--peer-listen", "--admin-listen", "--listen"):
        parser.add_argument(flag)
    parser.add_argument("--numerics", default="one")
    for flag in ("--lie", "--tear", "--cross", "--stay"):
        parser.add_argument(flag, action="store_true")
    args = Pages.args = parser.parse_args()
    if args.tls not in (None, "off"):
        command = ["openssl", "verify", "-CAfile", f"{args.tls}/ca.crt", f"{args.tls}/tls.crt"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: args.stay or stop.set())
    servers = [serve(Admin, args.admin_listen)]
    if args.peer_listen:
        servers.append(serve(Peer, args.peer_listen, Secure))
    if args.listen:
        servers.append(serve(Api, args.listen))
    while not stop.wait(0.05):
        pass
    # Answers under way are finished: handler threads are waited for.
    for server in reversed(servers):
        server.shutdown()
        server.daemon_threads = False
        server.server_close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "process_request" in thread.name:
            thread.join(10)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
