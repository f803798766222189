"""Runs real clients against a gateway, twice: over its own backend, and over the network.

Arguments: the `spillway` binary, and the folder of `node_modules` with the clients for Node. Only base URL and key differ from what
the clients do elsewhere. The backend is a test double (`mock_upstream.py`); the nodes, the market between them and the clients
are real. Ends with 0 if every client's checks held.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
CLIENTS = [
    [sys.executable, "openai_all.py"],
    ["node", "openai_all.mjs"],
    [sys.executable, "anthropic_all.py"],
    [sys.executable, "langchain_all.py"],
    [sys.executable, "litellm_all.py"],
]
ENDPOINTS = ["chat", "completion", "embedding", "rerank", "image", "transcription", "speech", "moderation"]
PATIENCE_S = 180


class Node:
    """A node of the network."""

    def __init__(self, binary, folder, init, changes):
        self.binary, self.folder = binary, folder
        self.spillway("init", *init)
        path = os.path.join(folder, "spillway.toml")
        settings = open(path, encoding="utf-8").read()
        for old, new in [
            ('listen = ["/ip4/0.0.0.0/udp/4600/quic-v1", "/ip4/0.0.0.0/tcp/4600"]', 'listen = ["/ip4/127.0.0.1/udp/0/quic-v1"]'),
            ('"127.0.0.1:8080"', '"127.0.0.1:0"'),
            ('"127.0.0.1:4601"', '"127.0.0.1:0"'),
            ("mdns = true", "mdns = false"),
            *changes,
        ]:
            assert old in settings, f"{old} is not in {path}"
            settings = settings.replace(old, new, 1)
        open(path, "w", encoding="utf-8").write(settings)
        self.log = open(os.path.join(folder, "log"), "w", encoding="utf-8")
        up = [binary, "up", "--folder", folder, "--until-stdin-closes"]
        self.process = subprocess.Popen(up, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{folder} did not come up:\n" + open(self.log.name, encoding="utf-8").read()[-4000:])
        self.ready = json.loads(line)

    def spillway(self, *arguments):
        done = subprocess.run([self.binary, *arguments, "--folder", self.folder], check=True, capture_output=True, text=True)
        return done.stdout

    def key(self):
        return json.loads(self.spillway("key", "create", "--json", "--name", "clients"))["secret"]

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.log.close()


def ask(base_url, key, path, body=None):
    """A request without any client; None if it is refused."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{base_url}/{path}", data=data, headers={"authorization": f"Bearer {key}"})
    try:
        return json.load(urllib.request.urlopen(request, timeout=60))
    except (urllib.error.URLError, OSError):
        return None


def wait_until_served(base_url, key):
    """Waits for the models to be on offer, and for a first answer of each: sessions with providers open meanwhile."""
    end = time.monotonic() + PATIENCE_S
    wanted = [
        ("chat/completions", {"model": "mock-model", "messages": [{"role": "user", "content": "first"}]}),
        ("responses", {"model": "mock-native", "input": "first"}),
        ("embeddings", {"model": "mock-embedding", "input": "first"}),
    ]
    while wanted:
        if ask(base_url, key, *wanted[0]) is not None:
            wanted.pop(0)
        elif time.monotonic() > end:
            sys.exit(f"{wanted[0]} was not served within {PATIENCE_S} s")
        else:
            time.sleep(0.5)


def main():
    binary, modules = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    upstream = subprocess.Popen([sys.executable, os.path.join(HERE, "mock_upstream.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    origin = upstream.stdout.readline().strip()
    work = tempfile.TemporaryDirectory(prefix="spillway-clients-")
    nodes = []
    failed = []
    try:
        server = f'endpoints = {json.dumps(ENDPOINTS)}\nslots = 8\n\n[[backend]]\nkind = "openai"\nurl = "{origin}/native/v1"\nendpoints = ["chat", "response", "message"]\nslots = 8'
        provider = Node(binary, os.path.join(work.name, "provider"), ["--backend", f"{origin}/v1"], [
            ("slots = 4                     # requests at once", server),
            ("enabled = false", "enabled = true"),
            ("reserved_slots = 1", "reserved_slots = 0"),
        ])
        nodes.append(provider)
        genesis = os.path.join(provider.folder, "genesis.json")
        joining = ["--network", genesis, "--authority", provider.ready["peer_id"], "--bootstrap", provider.ready["addresses"][0]]
        consumer = Node(binary, os.path.join(work.name, "consumer"), joining, [])
        nodes.append(consumer)
        provider.spillway("ledger", "mint", "--to", consumer.ready["account"], "--amount", "1000", "--reference", "clients")
        for route, node in [("own", provider), ("network", consumer)]:
            key, base_url = node.key(), node.ready["base_url"]
            wait_until_served(base_url, key)
            print(f"-- {route}", flush=True)
            environment = {**os.environ, "SPILLWAY_BASE_URL": base_url, "SPILLWAY_KEY": key, "SPILLWAY_ROUTE": route, "SPILLWAY_NODE_MODULES": modules}
            for client in CLIENTS:
                if subprocess.run(client, cwd=HERE, env=environment, check=False).returncode != 0:
                    failed.append(f"{client[1]} ({route})")
    finally:
        for node in reversed(nodes):
            node.stop()
        upstream.stdin.close()
        upstream.wait(timeout=60)
        if failed:
            for node in nodes:
                print(open(node.log.name, encoding="utf-8").read()[-6000:], file=sys.stderr)
        work.cleanup()
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
        return 1
    print("every client's checks held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
