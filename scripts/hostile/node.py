"""One node with a key, an admin token and a backend, for hostile requests. The backend is the clients' test double, which refuses
what it does not understand: a server that breaks there would be the backend's fault, and hide the node's.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "clients"))

from run import ENDPOINTS, Node, wait_until_served  # noqa: E402


class World:
    """A fresh node and its backend; `log` is the name of what the node writes to its standard error."""

    def __init__(self, binary):
        self.work = tempfile.TemporaryDirectory(prefix="spillway-hostile-")
        backend = [sys.executable, os.path.join(HERE, "backend.py")]
        self.backend = subprocess.Popen(backend, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        origin = self.backend.stdout.readline().strip()
        server = (
            f'endpoints = {json.dumps(ENDPOINTS)}\nslots = 8\n\n[[backend]]\nkind = "openai"\nurl = "{origin}/native/v1"\n'
            'endpoints = ["chat", "response", "message"]\nslots = 8'
        )
        # What is logged when somebody looks for a fault: more than usual, and still no secret.
        os.environ.setdefault("RUST_LOG", "info,spillway_node=debug,hyper=debug")
        self.node = Node(os.path.abspath(binary), os.path.join(self.work.name, "node"), ["--backend", f"{origin}/v1"], [
            ("slots = 4                     # requests at once", server),
        ])
        self.folder, self.log = self.node.folder, self.node.log.name
        self.base_url = self.node.ready["base_url"]
        self.origin = self.base_url.removesuffix("/v1")
        self.port = int(self.origin.rsplit(":", 1)[1])
        self.key = self.node.key()
        with open(os.path.join(self.folder, "admin.token"), encoding="utf-8") as file:
            self.token = file.read().strip()
        self.job = None  # The last one that `ask` did.
        wait_until_served(self.base_url, self.key)

    def ask(self, path, body=None, key=None):
        """Status and body of a request that is in order."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {key or self.key}", "content-type": "application/json"}
        request = urllib.request.Request(self.origin + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                self.job = response.headers.get("x-spillway-job", self.job)
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def is_well(self):
        """Whether a request that is in order is served."""
        status, body = self.ask("/v1/chat/completions", {"model": "mock-model", "messages": [{"role": "user", "content": "well?"}]})
        return status == 200 and b"choices" in body

    def resident_mib(self):
        with open(f"/proc/{self.node.process.pid}/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def stop(self):
        """Stops both; the node's exit status."""
        self.node.stop()
        self.backend.stdin.close()
        self.backend.wait(timeout=60)
        return self.node.process.returncode

    def close(self):
        for process in [self.node.process, self.backend]:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.work.cleanup()


def secrets_found(folder, secrets):
    """Where in the files under `folder` one of `secrets` (name: text) stands, as it is or in hexadecimal; `admin.token` itself
    is the one file that may have one."""
    needles = [(name, form) for name, text in secrets.items() for form in (text.encode(), text.encode().hex().encode())]
    found, read = [], 0
    for at, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(at, name)
            if name == "admin.token" or not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                content = file.read()
            read += len(content)
            found += [f"{secret} in {os.path.relpath(path, folder)}" for secret, needle in needles if needle in content]
    return found, read
