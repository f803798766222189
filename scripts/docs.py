#!/usr/bin/env python3
"""Runs the commands of documentation pages as a new user would: all `sh` and `python` blocks of a page, in order, in an empty folder.

    scripts/docs.py SPILLWAY_BINARY PYTHON PAGE…

PYTHON is an interpreter that has the clients that the pages use (`openai`, `litellm`). A block with `spillway up` runs beside the others.
Ports are replaced by free ones, so that nothing on this machine is in the way. Ends with 1 at the first command that fails.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time

WAIT_S = 120
FIRST_LINE = 2


def blocks(page):
    """Language, line and text of each block."""
    text = open(page, encoding="utf-8").read()
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield block[1], text[: block.start()].count("\n") + FIRST_LINE, block[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def quiet_ports(folder, port):
    """A node that was just made listens where nothing else does."""
    path = os.path.join(folder, "spillway.toml")
    settings = open(path, encoding="utf-8").read()
    for old, new in [
        ('listen = ["/ip4/0.0.0.0/udp/4600/quic-v1", "/ip4/0.0.0.0/tcp/4600"]', 'listen = ["/ip4/127.0.0.1/udp/0/quic-v1"]'),
        ('"127.0.0.1:8080"', f'"127.0.0.1:{port}"'),
        ('"127.0.0.1:4601"', '"127.0.0.1:0"'),
        ("mdns = true", "mdns = false"),
    ]:
        settings = settings.replace(old, new, 1)
    open(path, "w", encoding="utf-8").write(settings)


def run(page, binary, python):
    work = tempfile.TemporaryDirectory(prefix="spillway-docs-")
    environment = {**os.environ, "PATH": f"{os.path.dirname(binary)}:{os.environ['PATH']}", "RUST_LOG": "warn", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    folder, port, up = work.name, free_port(), None
    try:
        for language, line, text in blocks(page):
            text = text.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
            if language == "sh" and re.search(r"^spillway up", text, re.MULTILINE):
                up = subprocess.Popen([binary, "up", "--until-stdin-closes"], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
                end = time.monotonic() + WAIT_S
                while not os.path.exists(os.path.join(folder, "run.json")):
                    if up.poll() is not None or time.monotonic() > end:
                        sys.exit(f"{page}:{line}: the node did not come up")
                    time.sleep(0.1)
                continue
            if language == "sh":
                # Where it ends and what it exports hold for the next block.
                state = os.path.join(work.name, ".state")
                command = ["bash", "-euo", "pipefail", "-c", f"{text}\n{{ pwd; export -p; }} >{state}"]
            elif language == "python":
                command = [python, "-c", text]
            else:
                continue
            print(f"-- {page}:{line}", flush=True)
            if subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=False).returncode:
                sys.exit(f"{page}:{line}: failed")
            print(flush=True)
            if language == "sh":
                after = open(state, encoding="utf-8").read().split("\n", 1)
                folder = after[0]
                for name, value in re.findall(r'^declare -x (\w+)="(.*)"$', after[1], re.MULTILINE):
                    environment[name] = value.replace('\\"', '"').replace("\\$", "$").replace("\\\\", "\\")
                if "spillway init" in text:
                    quiet_ports(folder, port)
    finally:
        if up is not None and up.poll() is None:
            up.stdin.close()
            up.wait(timeout=60)
        work.cleanup()


def main():
    binary, python, pages = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
    for page in pages:
        run(page, binary, python)
    print(f"{len(pages)} pages: every command did what it should")


if __name__ == "__main__":
    main()
