"""Starts nginx, LiteLLM and Portkey in front of where the mock upstream of `spillway bench gateway` will be, runs that, and ends them.

Arguments: the `spillway` binary; the folder with `venv` and `npm`; what else `spillway bench gateway` is to be told.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

PATIENCE_S = 120
MODEL = "bench-model"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(stack, work, name, command, port, environment=None):
    """A server as a process that ends with `stack`; returns once it listens."""
    log = stack.enter_context(open(os.path.join(work, f"{name}.log"), "w", encoding="utf-8"))
    environment = {**os.environ, **(environment or {})}
    process = subprocess.Popen(command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop():
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process.pid
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                with open(log.name, encoding="utf-8", errors="replace") as written:
                    sys.exit(f"{name} does not listen:\n" + written.read()[-3000:])
            time.sleep(0.1)


def nginx(stack, work, upstream):
    port = free_port()
    with open(os.path.join(work, "nginx.conf"), "w", encoding="utf-8") as file:
        file.write(f"""
daemon off;
pid {work}/nginx.pid;
error_log {work}/nginx.error.log;
worker_processes auto;
events {{ worker_connections 1024; }}
http {{
    access_log {work}/nginx.access.log;
    client_body_temp_path {work}/nginx-body;
    proxy_temp_path {work}/nginx-proxy;
    fastcgi_temp_path {work}/nginx-fastcgi;
    uwsgi_temp_path {work}/nginx-uwsgi;
    scgi_temp_path {work}/nginx-scgi;
    keepalive_requests 100000000;
    upstream mock {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
""")
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-p", work, "-c", os.path.join(work, "nginx.conf"), "-e", os.path.join(work, "nginx.error.log")]
    return {"name": "nginx", "base_url": f"http://127.0.0.1:{port}/v1", "pid": start(stack, work, "nginx", command, port)}


def litellm(stack, work, upstream, kept):
    port = free_port()
    with open(os.path.join(work, "litellm.yaml"), "w", encoding="utf-8") as file:
        json.dump({
            "model_list": [{
                "model_name": MODEL,
                "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"},
            }],
            "general_settings": {"master_key": "sk-bench"},
        }, file)
    command = [os.path.join(kept, "venv/bin/litellm"), "--config", os.path.join(work, "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    pid = start(stack, work, "litellm", command, port, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    return {"name": "litellm", "base_url": f"http://127.0.0.1:{port}/v1", "headers": {"authorization": "Bearer sk-bench"}, "pid": pid}


def portkey(stack, work, upstream, kept):
    port = free_port()
    command = ["node", os.path.join(kept, "npm/node_modules/@portkey-ai/gateway/build/start-server.js"), f"--port={port}", "--headless"]
    pid = start(stack, work, "portkey", command, port, {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"})
    headers = {"authorization": "Bearer none", "x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1"}
    return {"name": "portkey", "base_url": f"http://127.0.0.1:{port}/v1", "headers": headers, "pid": pid}


def main():
    binary, kept, rest = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-bench-"))
        upstream = free_port()
        others = [nginx(stack, work, upstream), litellm(stack, work, upstream, kept), portkey(stack, work, upstream, kept)]
        path = os.path.join(work, "beside.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(others, file)
        return subprocess.run([binary, "bench", "gateway", "--upstream", f"127.0.0.1:{upstream}", "--beside", path, *rest], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
