#!/usr/bin/env python3
"""Tries a node behind nginx, with the configuration that docs/behind-a-gateway.md prints.

    scripts/behind_proxy.py SPILLWAY_BINARY [NGINX]

nginx comes from Debian (`apt-get install nginx-light`). Ends with 0 if all that the page says of nginx holds.
"""

import http.client
import json
import os
import queue
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "clients"))

from run import PATIENCE_S, Node, ask  # noqa: E402

PAGE = os.path.join(os.path.dirname(HERE), "docs", "behind-a-gateway.md")
# How long the gateway keeps a connection that is idle, and a little more.
IDLE_S = 11
go, left = threading.Semaphore(0), queue.Queue()


class Upstream(socketserver.StreamRequestHandler):
    """Sends one event, and each further one when it is told to; to those who ask it to hang it says nothing more."""

    def handle(self):
        while first := self.rfile.readline():
            length = 0
            while line := self.rfile.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = self.rfile.read(length)
            if first.startswith(b"GET"):
                models = b'{"object":"list","data":[{"id":"proxied","object":"model","owned_by":"x"}]}'
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(models) + models)
                continue
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            event = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":%s}]}\n\n'
            self.wfile.write(event % b"null")
            if b"hang" in body:
                try:
                    self.connection.recv(1)
                except OSError:
                    pass
                left.put(time.monotonic())
                return
            if b"stepwise" in body:
                for _ in range(3):
                    go.acquire()
                    self.wfile.write(event % b"null")
            self.wfile.write(event % b'"stop"' + b"data: [DONE]\n\n")
            return


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_nginx(nginx, folder, gateway_port):
    """Runs nginx with the page's configuration; its port, and the process."""
    block = re.search(r"^```nginx\n(.*?)^```$", open(PAGE, encoding="utf-8").read(), re.MULTILINE | re.DOTALL)[1]
    port = free_port()
    block = block.replace("127.0.0.1:8080", f"127.0.0.1:{gateway_port}").replace("127.0.0.1:8443", f"127.0.0.1:{port}")
    paths = "\n".join(f"    {name}_temp_path {folder}/{name};" for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    config = os.path.join(folder, "nginx.conf")
    with open(config, "w", encoding="utf-8") as file:
        file.write(f"pid {folder}/pid;\nerror_log {folder}/error.log;\nworker_processes 1;\ndaemon off;\nuser root;\nevents {{}}\nhttp {{\n    access_log off;\n{paths}\n{block}}}\n")
    process = subprocess.Popen([nginx, "-c", config, "-e", f"{folder}/error.log"])
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return port, process
        except OSError:
            assert process.poll() is None and time.monotonic() < end, open(f"{folder}/error.log", encoding="utf-8").read()
            time.sleep(0.1)


def chat(text, **more):
    return json.dumps({"model": "proxied", "messages": [{"role": "user", "content": text}], **more})


def check(what, held, saw=""):
    print(f"{'held  ' if held else 'FAILED'} {what} {saw}", flush=True)
    return bool(held)


def main():
    binary = os.path.abspath(sys.argv[1])
    nginx = sys.argv[2] if len(sys.argv) > 2 else shutil.which("nginx") or "/usr/sbin/nginx"
    if not os.path.exists(nginx):
        sys.exit("missing: nginx (Debian: apt-get install nginx-light)")
    server = Server(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    work = tempfile.TemporaryDirectory(prefix="spillway-proxy-")
    held, proxy, node = [], None, None
    try:
        node = Node(binary, os.path.join(work.name, "node"), ["--backend", f"http://127.0.0.1:{server.server_address[1]}/v1"], [])
        key = node.key()
        end = time.monotonic() + PATIENCE_S
        while ask(node.ready["base_url"], key, "chat/completions", json.loads(chat("first"))) is None:
            assert time.monotonic() < end, "nothing was served"
            time.sleep(0.3)
        folder = os.path.join(work.name, "nginx")
        os.mkdir(folder)
        port, proxy = start_nginx(nginx, folder, int(node.ready["base_url"].removesuffix("/v1").rsplit(":", 1)[1]))
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def post(body, headers=headers, path="/v1/chat/completions"):
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

        status, got, body = post(chat("hi"))
        held.append(check("an answer in one piece", status == 200 and b'"xx"' in body and got["x-spillway-job"], status))
        status, _, body = post(chat("x" * (3_900_000)))
        held.append(check("a body of 3.9 MiB", status == 200, status))
        status, _, body = post(chat("x" * (5 << 20)))
        held.append(check("one of 5 MiB is refused", status == 413, status))
        connection.close()
        status, _, _ = post(chat("hi"), {"x-api-key": key})
        held.append(check("x-api-key without Authorization", status == 200, status))
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            two = f"authorization: Bearer {key}\r\n" * 2
            raw.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{two}content-length: 2\r\n\r\n{{}}".encode())
            # nginx refuses it itself, or the node does.
            answer = raw.recv(65536)
            held.append(check("two Authorization headers are refused", answer.split()[1] in (b"400", b"401"), answer.split()[1]))
        connection.request("GET", "/admin/keys", headers={"authorization": "Bearer x"})
        response = connection.getresponse()
        held.append(check("the operator's routes are not there", response.status == 404 and response.read() is not None, response.status))
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        held.append(check("readiness without a key", response.status == 200 and response.read() is not None, response.status))

        # A stream: the next event is sent only once the one before has been read here.
        connection.request("POST", "/v1/chat/completions", chat("stepwise", stream=True), headers)
        response = connection.getresponse()
        seen = 0
        while line := response.readline():
            if line.startswith(b"data: {"):
                seen += 1
                if seen <= 3:
                    go.release()
            elif line.startswith(b"data: [DONE]"):
                break
        response.read()
        held.append(check("a stream comes event by event", seen == 5, seen))

        # A client that leaves.
        raw = socket.create_connection(("127.0.0.1", port), timeout=60)
        body = chat("hang", stream=True)
        raw.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        got = b""
        while b"data: " not in got:
            got += raw.recv(65536)
        at = time.monotonic()
        raw.close()
        took = (left.get(timeout=60) - at) * 1000
        held.append(check("a client that leaves stops the server", True, f"{took:.1f} ms"))

        # Idle for longer than the gateway keeps a connection: nginx had let go of it first.
        post(chat("hi"))
        time.sleep(IDLE_S)
        answers = [post(chat("hi"))[0] for _ in range(20)]
        held.append(check(f"requests after {IDLE_S} s of rest", answers == [200] * 20, answers))
    finally:
        if proxy is not None:
            proxy.terminate()
            proxy.wait(timeout=60)
        if node is not None:
            node.stop()
        server.shutdown()
        work.cleanup()
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
