"""Compares what clients get through Spillway with what a llama.cpp server says itself.

Arguments: the `spillway` binary, a GGUF model, and perhaps a folder to record the server's answers in. Every request is put to the
server directly, to a node whose backend it is, and to a node that buys from that one. Each `data:` event must be the server's, byte
for byte, but for `id` and `created`, which differ with every call; what the gateway says of usage and cost is documented in
docs/api.md. Ends with 0 if all are alike.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "clients"))

from run import PATIENCE_S, Node, ask  # noqa: E402

MODEL = "guide-gguf"
CHAT = {"messages": [{"role": "user", "content": "what is spill-over?"}], "temperature": 0, "seed": 7, "max_tokens": 24}
PROMPT = {"prompt": "Spill-over is", "temperature": 0, "seed": 7, "max_tokens": 16}
REQUESTS = {
    "llama-chat": ("chat/completions", CHAT),
    "llama-chat-system": ("chat/completions", {**CHAT, "messages": [{"role": "system", "content": "Be brief. ünï 🦀"}, *CHAT["messages"]]}),
    "llama-chat-logprobs": ("chat/completions", {**CHAT, "max_tokens": 5, "logprobs": True, "top_logprobs": 2}),
    "llama-chat-stop": ("chat/completions", {**CHAT, "stop": [" ", "."]}),
    "llama-chat-seeded": ("chat/completions", {**CHAT, "temperature": 0.9, "seed": 42, "top_p": 0.9}),
    "llama-completion": ("completions", PROMPT),
    "llama-completion-logprobs": ("completions", {**PROMPT, "max_tokens": 5, "logprobs": 2}),
    "llama-completion-stop": ("completions", {**PROMPT, "stop": "e"}),
}
# What is recorded: enough for a test, and small.
RECORDED = ["llama-chat", "llama-chat-logprobs", "llama-completion"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def post(base_url, path, body, key="none"):
    """Status, headers and body, as they came."""
    url = urllib.parse.urlsplit(base_url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", f"{url.path}/{path}", json.dumps(body), headers)
    response = connection.getresponse()
    read = response.status, response.headers, response.read()
    connection.close()
    return read


def events(body):
    """The data of each event; lines end as the server likes it."""
    return [line[5:].strip() for line in body.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data:")]


def alike(event):
    """An event without what differs from call to call."""
    return re.sub(rb'("(?:id|created)"\s*:\s*)("[^"]*"|\d+)', rb"\1*", event, count=2)


def whole_alike(body):
    """A whole answer without what differs from call to call, and without what is null: servers leave that out, or not."""
    def without_nulls(value):
        if isinstance(value, dict):
            return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
        return [without_nulls(inner) for inner in value] if isinstance(value, list) else value

    return {name: value for name, value in without_nulls(json.loads(body)).items() if name not in ("id", "created", "usage")}


class Server:
    """llama.cpp's server; its log is kept for the case that it does not come up."""

    def __init__(self, model, folder):
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.log = open(os.path.join(folder, "server.log"), "w", encoding="utf-8")
        command = [sys.executable, "-m", "llama_cpp.server", "--model", model, "--model_alias", MODEL, "--host", "127.0.0.1", "--port", str(port),
                   "--n_ctx", "512", "--n_threads", "1", "--logits_all", "true", "--seed", "7"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        end = time.monotonic() + PATIENCE_S
        while ask(self.base_url, "none", "models") is None:
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit("the server did not come up:\n" + open(self.log.name, encoding="utf-8").read()[-4000:])
            time.sleep(0.5)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.log.close()


def compare(name, path, request, server, places, record):
    """What differs, in words; nothing if all is alike."""
    asked = {"model": MODEL, **request}
    status, _, streamed = post(server.base_url, path, {**asked, "stream": True})
    assert status == 200, (name, streamed)
    status, _, whole = post(server.base_url, path, asked)
    assert status == 200, (name, whole)
    said = events(streamed)
    assert said[-1] == b"[DONE]", said
    said = [event for event in said[:-1] if not json.loads(event).get("usage")]
    if record and name in RECORDED:
        with open(os.path.join(record, f"{name}.sse"), "wb") as file:
            file.write(streamed)
        with open(os.path.join(record, f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump({"path": path, "request": request, "whole": json.loads(whole)}, file, ensure_ascii=False, indent=1)
            file.write("\n")
    faults = []
    for route, base_url, key in places:
        status, headers, got = post(base_url, path, {**asked, "stream": True, "stream_options": {"include_usage": True}}, key)
        if status != 200 or headers["x-spillway-route"] != route:
            faults.append(f"{name}, {route}: {status} {headers['x-spillway-route']} {got[:500]}")
            continue
        got = events(got)
        if got.pop() != b"[DONE]":
            faults.append(f"{name}, {route}: no [DONE]")
        usage = json.loads(got.pop())
        if usage["choices"] or "cost" not in usage["usage"]:
            faults.append(f"{name}, {route}: {usage} where usage was expected")
        if [alike(event) for event in got] != [alike(event) for event in said]:
            pair = next(((ours, theirs) for ours, theirs in zip(got, said) if alike(ours) != alike(theirs)), (len(got), len(said)))
            faults.append(f"{name}, {route}, streamed: {pair[0]} where the server says {pair[1]}")
        status, _, ours = post(base_url, path, asked, key)
        if status != 200 or whole_alike(ours) != whole_alike(whole):
            faults.append(f"{name}, {route}, whole: {status} {ours} where the server says {whole}")
        print(f"{name}, {route}: {len(got)} events and a whole answer, {'alike' if not faults else 'NOT alike'}; usage {json.dumps(usage['usage'])}", flush=True)
    return faults


def main():
    binary, model = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    record = sys.argv[3] if len(sys.argv) > 3 else None
    if record:
        os.makedirs(record, exist_ok=True)
    work = tempfile.TemporaryDirectory(prefix="spillway-upstreams-")
    server, nodes, faults = Server(model, work.name), [], []
    try:
        slots = ("slots = 4                     # requests at once", "slots = 1")
        provider = Node(binary, os.path.join(work.name, "provider"), ["--backend", server.base_url], [
            slots, ("enabled = false", "enabled = true"), ("reserved_slots = 1", "reserved_slots = 0"),
        ])
        nodes.append(provider)
        joining = ["--network", os.path.join(provider.folder, "genesis.json"), "--authority", provider.ready["peer_id"], "--bootstrap", provider.ready["addresses"][0]]
        consumer = Node(binary, os.path.join(work.name, "consumer"), joining, [])
        nodes.append(consumer)
        provider.spillway("ledger", "mint", "--to", consumer.ready["account"], "--amount", "1000", "--reference", "upstreams")
        places = []
        for route, node in [("own", provider), ("network", consumer)]:
            key, base_url = node.key(), node.ready["base_url"]
            end = time.monotonic() + PATIENCE_S
            while ask(base_url, key, "completions", {"model": MODEL, "prompt": "first", "max_tokens": 2}) is None:
                assert time.monotonic() < end, f"nothing was served within {PATIENCE_S} s"
                time.sleep(0.5)
            places.append((route, base_url, key))
        for name, (path, request) in REQUESTS.items():
            faults += compare(name, path, request, server, places, record)
    finally:
        for node in reversed(nodes):
            node.stop()
        server.stop()
        work.cleanup()
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print("every event is the server's")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
