#!/usr/bin/env python3
"""Measures how soon the server behind a gateway learns that a client has left.

    scripts/leave.py [SPILLWAY_BINARY [LEAVES]]     100 leaves of each kind by default; without a binary, the release build

Clients leave a stream after its first event, and an answer in one piece before its end; over the gateway's own backend, and over
the network, where the gateway buys from another node. Time runs from the client's close() until the server's connection ends, on one
clock. Prints a line of JSON for each kind; ends with 1 if the 99th percentile of any is over 100 ms.
"""

import json
import os
import queue
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(HERE, "clients"))

from run import PATIENCE_S, Node, ask  # noqa: E402

LIMIT_MS = 100
begun, ended = queue.Queue(), queue.Queue()


class Upstream(socketserver.StreamRequestHandler):
    """Answers with one event, and then with nothing until the other side leaves; whole answers to `whole` questions."""

    def handle(self):
        while True:
            first = self.rfile.readline().decode()
            length = 0
            while (line := self.rfile.readline().strip()) not in (b"",):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if not first:
                return
            body = self.rfile.read(length)
            if first.startswith("GET"):
                models = json.dumps({"object": "list", "data": [{"id": "leave-model", "object": "model", "owned_by": "x"}]}).encode()
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(models) + models)
                continue
            event = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"leave-model","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":%s}]}\n\n'
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + event % b"null")
            if b"to the end" in body:
                self.wfile.write(event % b'"stop"' + b"data: [DONE]\n\n")
                return
            begun.put(time.monotonic())
            try:
                self.connection.recv(1)
            except OSError:
                pass
            ended.put(time.monotonic())
            return


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


def leave(base_url, key, stream):
    """One client that leaves; the milliseconds until the server learned of it."""
    url = urllib.parse.urlsplit(base_url)
    body = json.dumps({"model": "leave-model", "messages": [{"role": "user", "content": "stay?"}], "stream": stream}).encode()
    connection = socket.create_connection((url.hostname, url.port), timeout=60)
    head = f"POST {url.path}/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    begun.get(timeout=60)
    if stream:
        got = b""
        while b"data: " not in got:
            more = connection.recv(65536)
            assert more, got
            got += more
        assert got.startswith(b"HTTP/1.1 200"), got
    else:
        time.sleep(0.02)  # So that the event is on its way already.
    left = time.monotonic()
    connection.close()
    return (ended.get(timeout=60) - left) * 1000


def main():
    if len(sys.argv) > 1:
        binary = os.path.abspath(sys.argv[1])
    else:
        subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
        binary = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release/spillway")
    leaves = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    server = Server(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{server.server_address[1]}/v1"
    work = tempfile.TemporaryDirectory(prefix="spillway-leave-")
    nodes, slow = [], []
    try:
        provider = Node(binary, os.path.join(work.name, "provider"), ["--backend", origin], [("enabled = false", "enabled = true"), ("reserved_slots = 1", "reserved_slots = 0")])
        nodes.append(provider)
        joining = ["--network", os.path.join(provider.folder, "genesis.json"), "--authority", provider.ready["peer_id"], "--bootstrap", provider.ready["addresses"][0]]
        consumer = Node(binary, os.path.join(work.name, "consumer"), joining, [])
        nodes.append(consumer)
        provider.spillway("ledger", "mint", "--to", consumer.ready["account"], "--amount", "1000", "--reference", "leave")
        for route, node in [("own", provider), ("network", consumer)]:
            key, base_url = node.key(), node.ready["base_url"]
            end = time.monotonic() + PATIENCE_S
            first = {"model": "leave-model", "messages": [{"role": "user", "content": "to the end"}]}
            while ask(base_url, key, "chat/completions", first) is None:
                assert time.monotonic() < end, f"nothing was served within {PATIENCE_S} s"
                time.sleep(0.5)
            for stream in [True, False]:
                took = sorted(leave(base_url, key, stream) for _ in range(leaves))
                figures = {"route": route, "stream": stream, "leaves": leaves, "p50_ms": round(took[len(took) // 2], 2),
                           "p99_ms": round(took[min(len(took) - 1, len(took) * 99 // 100)], 2), "max_ms": round(took[-1], 2)}
                print(json.dumps(figures), flush=True)
                if figures["p99_ms"] > LIMIT_MS:
                    slow.append(figures)
    finally:
        for node in reversed(nodes):
            node.stop()
        server.shutdown()
        work.cleanup()
    if slow:
        sys.exit(f"over {LIMIT_MS} ms: {slow}")


if __name__ == "__main__":
    main()
