"""Requests that no client library would send, as bytes on a socket, against a node of its own.

Arguments: the `spillway` binary, and how often the table is gone through (3). Each case says what may come back; after each, a
request that is in order is served. At the end: resident memory has not grown, the log has no panic, and neither data folder nor
log has the key's secret or the admin token. Ends with 0 if all of that held.
"""

import json
import os
import re
import socket
import sys
import threading
import time

from node import World, secrets_found

# How long an answer, or the end of the connection, may take where a case says nothing else: the node waits 10 s for headers.
LIMIT_S = 20
# The node waits 60 s for a body, and as long for a client to take what is sent; the rest is for a busy machine.
SLOW_LIMIT_S = 90
# Resident memory after the last round, above that after the first one, and above that of the node when it came up.
GROWTH_MIB = 16
GROWTH_FROM_START_MIB = 96
IDLE_CONNECTIONS = 1000

CLOSED = 0
REFUSED = {CLOSED, *range(400, 500)}
SERVED = {200}
NO_FAULT = REFUSED | {200}


def connect(port, receive_buffer=None):
    stream = socket.socket()
    if receive_buffer:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    stream.settimeout(5)
    stream.connect(("127.0.0.1", port))
    return stream


def send(stream, steps, pause_s=0.0):
    """Sends bytes one after another, until the other side is seen to close."""
    for step in steps:
        try:
            stream.sendall(step)
        except OSError:
            return
        if pause_s:
            time.sleep(pause_s)  # The case is that the client is slow.


def read_to_end(stream, end):
    """All that comes until the other side closes; None with it if that is not before `end`."""
    got = b""
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return got, False
        stream.settimeout(left)
        try:
            more = stream.recv(1 << 16)
        except TimeoutError:
            return got, False
        except ConnectionResetError:
            return got, True
        if not more:
            return got, True
        if len(got) < 1 << 20:
            got += more


def statuses(got):
    found = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", got)]
    return [status for status in found if status >= 200] or [CLOSED]


def exchange(port, steps, limit_s=LIMIT_S, pause_s=0.0):
    """What comes back for `steps`, and whether the connection ended in time."""
    end = time.monotonic() + limit_s
    with connect(port) as stream:
        writer = threading.Thread(target=send, args=(stream, steps, pause_s), daemon=True)
        writer.start()
        got, ended = read_to_end(stream, end)
    writer.join(timeout=limit_s)
    return got, ended


class Requests:
    """Builds the bytes of a request to a node."""

    def __init__(self, world):
        self.host = f"127.0.0.1:{world.port}"
        self.key, self.token = f"Bearer {world.key}", f"Bearer {world.token}"

    def head(self, line="POST /v1/chat/completions HTTP/1.1", host=None, close=True, auth="key", fields=()):
        lines = [line, f"Host: {host or self.host}"]
        lines += {"key": [f"Authorization: {self.key}"], "admin": [f"Authorization: {self.token}"], None: []}[auth]
        lines += ["Connection: close"] if close else []
        lines += fields
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    def post(self, body, path="/v1/chat/completions", fields=(), **head):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = [] if any(field.lower().startswith("content-type") for field in fields) else ["Content-Type: application/json"]
        fields = [*fields, *kind, f"Content-Length: {len(body)}"]
        return [self.head(f"POST {path} HTTP/1.1", fields=fields, **head), body]

    def chunked(self, tail, fields=(), **head):
        return [self.head(fields=["Transfer-Encoding: chunked", *fields], **head), tail]


CHAT = {"model": "mock-model", "messages": [{"role": "user", "content": "hi"}]}
GOOD = json.dumps(CHAT).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)


def with_field(text):
    """A good chat with one more field, as bytes."""
    return GOOD[:-1] + b', "x": ' + text + b"}"


def framing(make):
    """Where a request ends, and where the next one begins."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: " + make.host.encode() + b"\r\nAuthorization: " + make.key.encode() + b"\r\n\r\n"
    chunk = make.chunked
    return [
        ("a request in order", make.post(CHAT), SERVED),
        ("a chunked request in order", chunk(CHUNKED), SERVED),
        ("length, then chunked", chunk(CHUNKED + hidden, [f"Content-Length: {len(CHUNKED)}"], close=False), NO_FAULT),
        ("chunked, then a short length", [make.head(fields=["Content-Length: 6", "Transfer-Encoding: chunked"], close=False), b"0\r\n\r\n" + hidden], NO_FAULT),
        ("chunked is not last", [make.head(fields=["Transfer-Encoding: chunked, identity"]), CHUNKED], REFUSED),
        ("an unknown transfer encoding", [make.head(fields=["Transfer-Encoding: xchunked"]), CHUNKED], REFUSED),
        ("transfer encoding in HTTP/1.0", [make.head("POST /v1/chat/completions HTTP/1.0", fields=["Transfer-Encoding: chunked"]), CHUNKED], REFUSED),
        ("two lengths that differ", [make.head(fields=["Content-Length: 5", "Content-Length: 6"]), GOOD], REFUSED),
        ("two lengths in one", [make.head(fields=["Content-Length: 5, 6"]), GOOD], REFUSED),
        ("a negative length", [make.head(fields=["Content-Length: -1"]), GOOD], REFUSED),
        ("a length with a sign", [make.head(fields=[f"Content-Length: +{len(GOOD)}"]), GOOD], REFUSED),
        ("a length beyond 64 bits", [make.head(fields=["Content-Length: 99999999999999999999999"]), GOOD], REFUSED),
        ("no length and no chunks", [make.head(), GOOD], REFUSED),
        ("a chunk's size is no number", chunk(b"ZZ\r\nabc\r\n0\r\n\r\n"), REFUSED),
        ("a chunk's size overflows", chunk(b"FFFFFFFFFFFFFFFFF\r\nabc"), REFUSED),
        ("a chunk's size is negative", chunk(b"-1\r\nabc\r\n0\r\n\r\n"), REFUSED),
        ("a chunk longer than its size", chunk(b"3\r\nabcdef\r\n0\r\n\r\n"), REFUSED),
        ("a chunk's extension of 1 MB", chunk(b"3;" + b"x" * 1_000_000 + b"\r\nabc\r\n0\r\n\r\n"), REFUSED),
        ("100,000 trailers", chunk(CHUNKED[:-2] + b"x: y\r\n" * 100_000 + b"\r\n"), NO_FAULT),
    ]


def heads(make):
    """Request lines and headers."""
    get = "GET /v1/models HTTP/1.1"
    fields = [f"x-{number}: y" for number in range(100_000)]
    models = make.head(get)
    return [
        ("100,000 headers", [make.head(get, fields=fields)], REFUSED),
        ("a header of 1 MB", [make.head(get, fields=["x: " + "y" * 1_000_000])], REFUSED),
        ("a path of 1 MB", [make.head(f"GET /{'p' * 1_000_000} HTTP/1.1")], REFUSED),
        ("a query of 60 kB", [make.head(f"GET /api/v1/generation?{'id=x&' * 12_000} HTTP/1.1")], REFUSED),
        ("authorization twice, the same", [make.head(get, fields=[f"Authorization: {make.key}"])], {400, 401}),
        ("authorization twice, the second wrong", [make.head(get, fields=["Authorization: Bearer sk-spillway-wrong"])], {400, 401}),
        ("authorization twice, the first wrong", [make.head(get, auth=None, fields=["Authorization: Bearer x", f"Authorization: {make.key}"])], {400, 401}),
        ("authorization twice, of the operator", [make.head("GET /admin/keys HTTP/1.1", auth="admin", fields=["Authorization: Bearer x"])], {400, 401}),
        ("x-api-key twice", [make.head(get, auth=None, fields=[f"x-api-key: {make.key[7:]}", "x-api-key: x"])], {400, 401}),
        ("authorization of 30 kB", [make.head(get, auth=None, fields=["Authorization: Bearer " + "y" * 30_000])], {400, 401}),
        ("authorization that is no UTF-8", [make.head(get, auth=None, fields=["Authorization: Bearer \xff\xfe"])], {400, 401}),
        ("a key for the operator's routes", [make.head("GET /admin/keys HTTP/1.1")], {401}),
        ("no key", [make.head(get, auth=None)], {401}),
        ("a NUL in a header", [models.replace(b"Connection: close", b"x: a\x00b\r\nConnection: close")], REFUSED),
        ("a space before the colon", [models.replace(b"Host:", b"Host :")], REFUSED),
        ("a folded header", [models.replace(b"Connection: close", b"x: a\r\n b\r\nConnection: close")], REFUSED),
        ("a bare carriage return", [models.replace(b"Connection: close", b"x: a\rb: c\r\nConnection: close")], REFUSED),
        ("bad UTF-8 in the path", [models.replace(b"/v1/models", b"/v1/models/\xff\xfe")], REFUSED),
        ("escaped bad UTF-8 in the path", [make.head("GET /v1/models/%ff%fe HTTP/1.1")], REFUSED),
        ("a NUL and dots in the path", [make.head("GET /v1/models/%00%2e%2e%2f%2e%2e%2fadmin.token HTTP/1.1")], REFUSED),
        ("up and out of the path", [make.head("GET /v1/../../../../etc/passwd HTTP/1.1")], REFUSED),
        ("an unknown method", [make.head("BREW /v1/models HTTP/1.1")], REFUSED),
        ("a method of 60 kB", [make.head("B" * 60_000 + " / HTTP/1.1")], REFUSED),
        ("TRACE", [make.head("TRACE /v1/models HTTP/1.1")], REFUSED),
        ("HTTP/3.7", [make.head("GET /v1/models HTTP/3.7")], REFUSED),
        ("HTTP/0.9", [b"GET /v1/models\r\n\r\n"], REFUSED),
        ("HTTP/2 by prior knowledge", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 64], REFUSED),
        ("a TLS greeting", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 500 + b"\r\n\r\n"], REFUSED),
        ("noise", [bytes(range(256)) * 400], REFUSED),
        ("lines without an end", [b"A" * 1_000_000], REFUSED),
        ("empty lines without an end", [b"\r\n" * 500_000], REFUSED),
        ("an upgrade to a socket", [make.head(get, close=False, fields=["Connection: upgrade, close", "Upgrade: websocket", "Sec-WebSocket-Key: x"])], NO_FAULT),
        ("an upgrade to h2c", [make.head(get, close=False, fields=["Connection: upgrade, close", "Upgrade: h2c"])], NO_FAULT),
    ]


def bodies(make):
    """What the body says."""
    multipart = ["Content-Type: multipart/form-data; boundary=b"]
    sound = "/v1/audio/transcriptions"
    deep = 1_000_000
    rows = [
        ("nothing", b""),
        ("no JSON", b"hello"),
        ("an array", b"[]"),
        ("a string", b'"x"'),
        ("null", b"null"),
        ("half an object", GOOD[:-1]),
        ("a million brackets", b"[" * deep),
        ("a million objects", b'{"a":' * deep),
        ("a million brackets that close", with_field(b"[" * deep + b"]" * deep)),
        ("a million objects that close", with_field(b'{"a":' * deep + b"1" + b"}" * deep)),
        ("deep content", b'{"model":"mock-model","messages":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        ("bad UTF-8 in the content", GOOD.replace(b"hi", b"\xff\xfe\xc3\x28")),
        ("bad UTF-8 in a name", GOOD[:-1] + b', "\xff": 1}'),
        ("bad UTF-8 in the model", GOOD.replace(b"mock-model", b"\xf0\x28\x8c\xbc")),
        ("bad UTF-8 in a field that passes through", with_field(b'"\xff"')),
        ("an overlong NUL", GOOD.replace(b"hi", b"\xc0\x80")),
        ("UTF-16", json.dumps(CHAT).encode("utf-16")),
        ("a byte order mark", b"\xef\xbb\xbf" + GOOD),
        ("a field twice", GOOD[:-1] + b', "model": "mock-embedding"}'),
        ("10,000 fields", GOOD[:-1] + b"".join(b', "x%d": 1' % number for number in range(10_000)) + b"}"),
        ("a model of 1 MB", GOOD.replace(b"mock-model", b"m" * 1_000_000)),
        ("a model that is a number", GOOD.replace(b'"mock-model"', b"7")),
        ("messages that are text", GOOD.replace(b'[{"role": "user", "content": "hi"}]', b'"hi"')),
        ("tokens below zero", GOOD[:-1] + b', "max_tokens": -1}'),
        ("tokens beyond 64 bits", GOOD[:-1] + b', "max_tokens": 99999999999999999999999999}'),
        ("tokens in the power of 400", GOOD[:-1] + b', "max_tokens": 1e400}'),
        ("something behind the object", GOOD + b"x"),
    ]
    harmless = [
        ("half a surrogate", GOOD.replace(b"hi", b"\\ud800")),
        ("a NUL in the content", GOOD.replace(b"hi", b"\\u0000")),
        ("a number of 100,000 digits", with_field(b"9" * 100_000)),
    ]
    return [
        *[(name, make.post(body), REFUSED) for name, body in rows],
        *[(name, make.post(body), NO_FAULT) for name, body in harmless],
        ("deep terms of a key", make.post(b'{"name":' + b"[" * deep, "/admin/keys", auth="admin"), REFUSED),
        ("bad UTF-8 in a key's name", make.post(b'{"name":"\xff"}', "/admin/keys", auth="admin"), REFUSED),
        ("a body over the limit", [make.head(fields=["Content-Length: 83886080"]), *[b" " * (1 << 20)] * 80], REFUSED),
        ("chunks over the limit", [make.head(fields=["Transfer-Encoding: chunked"]), *[b"100000\r\n" + b" " * (1 << 20) + b"\r\n"] * 80], REFUSED),
        ("a packed body", make.post(b"\x1f\x8b\x08\x00" + b"\x00" * 64, fields=["Content-Encoding: gzip"]), REFUSED),
        ("parts without a boundary", make.post(b"--b\r\n\r\n--b--", sound, ["Content-Type: multipart/form-data"]), REFUSED),
        ("parts that do not end", make.post(b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nmock-model', sound, multipart), REFUSED),
        ("parts without names", make.post(b"--b\r\n\r\nx\r\n--b--\r\n", sound, multipart), REFUSED),
        ("100,000 parts", make.post(b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n' * 100_000 + b"--b--\r\n", sound, multipart), REFUSED),
        ("a boundary of 60 kB", make.post(b"x", sound, ["Content-Type: multipart/form-data; boundary=" + "b" * 60_000]), REFUSED),
    ]


def browsers(make):
    """What a web page in the operator's browser can send: under another name, or from another origin."""
    get, keys = "GET /v1/models HTTP/1.1", "/admin/keys"
    evil = ["evil.example", f"evil.example:{make.host.rsplit(':', 1)[1]}", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "169.254.169.254", "[::]", ""]
    made = [
        (f"host {host!r} for {path}", [make.head(line, auth=auth).replace(f"Host: {make.host}".encode(), f"Host: {host}".encode())], {400, 403})
        for host in evil
        for path, line, auth in [("models", get, "key"), ("keys", "GET /admin/keys HTTP/1.1", "admin")]
    ]
    made += [
        ("no host", [make.head(get).replace(f"Host: {make.host}\r\n".encode(), b"")], {400, 403}),
        ("two hosts", [make.head(get, fields=["Host: evil.example"])], {400, 403}),
        ("another host in the target", [make.head("GET http://evil.example/v1/models HTTP/1.1", host="evil.example")], {400, 403}),
    ]
    from_elsewhere = ["Origin: http://evil.example", "Origin: null", "Origin: http://127.0.0.1:1", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
    for field in from_elsewhere:
        for path in [keys, "/admin/ledger/mint", "/key/generate", "/api/v1/keys"]:
            made.append((f"{field} at {path}", make.post({"name": "forged"}, path, [field], auth="admin"), {403}))
        made.append((f"{field} at {keys}, plain text", make.post(b'{"name":"forged"}', keys, [field, "Content-Type: text/plain"], auth=None), {401, 403}))
    for path in [keys, "/v1/chat/completions", "/key/generate"]:
        asks = ["Origin: http://evil.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"]
        made.append((f"a browser asks for leave at {path}", [make.head(f"OPTIONS {path} HTTP/1.1", auth=None, fields=asks)], REFUSED))
    return made


def detours(make, trap):
    """Requests that name another server: the node must not knock there."""
    there = f"http://127.0.0.1:{trap}"
    fields = {"api_base": there, "base_url": there, "url": there, "user": there}
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"{there}/picture"}}]}]
    headers = [f"x-portkey-custom-host: {there}", f"x-forwarded-host: 127.0.0.1:{trap}", f"Forwarded: host=127.0.0.1:{trap}"]
    return [
        ("fields that name a server", make.post({**CHAT, **fields}), NO_FAULT),
        ("headers that name a server", make.post(CHAT, fields=headers), NO_FAULT),
        ("a picture elsewhere", make.post({**CHAT, "messages": picture}), NO_FAULT),
        ("a model that is an address", make.post({**CHAT, "model": f"{there}/v1"}), REFUSED),
        ("a target that is an address", [make.head(f"GET {there}/v1/models HTTP/1.1")], NO_FAULT),
        ("a tunnel", [make.head(f"CONNECT 127.0.0.1:{trap} HTTP/1.1")], REFUSED),
    ]


def slow_cases(world, make):
    """Name, and a function that says what is wrong, or None; they run beside one another and beside the table."""

    def slowly(steps, wanted, limit_s):
        def run():
            got, ended = exchange(world.port, steps, limit_s, pause_s=1.0)
            return complaint(statuses(got), ended, wanted)

        return run

    def reads_nothing():
        """Asks again and again and takes no answer: the node gives up, and keeps no heap of answers."""
        end = time.monotonic() + SLOW_LIMIT_S
        with connect(world.port, receive_buffer=4096) as stream:
            ask = make.head("GET /openapi.json HTTP/1.1", close=False) * 50
            stream.settimeout(1)
            while time.monotonic() < end:
                try:
                    stream.send(ask)
                except TimeoutError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    return None
        return f"still open after {SLOW_LIMIT_S} s"

    def many_idle():
        end = time.monotonic() + LIMIT_S + 20
        streams = [connect(world.port) for _ in range(IDLE_CONNECTIONS)]
        try:
            if not world.is_well():
                return "no request is served beside idle connections"
            still = sum(not read_to_end(stream, end)[1] for stream in streams)
            return f"{still} of {IDLE_CONNECTIONS} still open" if still else None
        finally:
            for stream in streams:
                stream.close()

    head = make.head("GET /v1/models HTTP/1.1")
    length = make.head(fields=["Content-Length: 100000"])
    chunks = make.head(fields=["Transfer-Encoding: chunked"])
    wrong = make.head(auth=None, fields=["Authorization: Bearer wrong", "Content-Length: 100000"])
    dribble = [b" "] * SLOW_LIMIT_S
    return [
        ("nothing at all", slowly([], {CLOSED, 408}, LIMIT_S)),
        ("headers, a byte a second", slowly([head[at : at + 1] for at in range(len(head))], {CLOSED, 408}, LIMIT_S)),
        ("headers that stop", slowly([head[:-2]], {CLOSED, 408}, LIMIT_S)),
        ("a body, a byte a second", slowly([length, *dribble], {408}, SLOW_LIMIT_S)),
        ("a body that stops", slowly([length, b"{"], {408}, SLOW_LIMIT_S)),
        ("a body of 1 TB that stops", slowly([make.head(fields=["Content-Length: 1099511627776"]), b"{"], {408, 413}, SLOW_LIMIT_S)),
        ("chunks, one a second", slowly([chunks, *[b"1\r\n \r\n"] * SLOW_LIMIT_S], {408}, SLOW_LIMIT_S)),
        ("a body without a key, a byte a second", slowly([wrong, *dribble], {401}, LIMIT_S)),
        ("takes no answers", reads_nothing),
        (f"{IDLE_CONNECTIONS} idle connections", many_idle),
    ]


def complaint(came, ended, wanted):
    """What is wrong with the statuses that came, if anything."""
    if not ended:
        return f"no end of the connection; came {came}"
    if len(came) > 1:
        return f"{len(came)} answers to one request: {came}"
    if came[0] not in wanted:
        return f"came {came[0] or 'nothing'}, wanted {sorted(wanted) if len(wanted) < 9 else 'a refusal'}"
    return None


def go_through(world, cases):
    failed = []
    for name, steps, wanted in cases:
        got, ended = exchange(world.port, steps)
        wrong = complaint(statuses(got), ended, wanted)
        if wrong is None and b"access-control-allow" in got.lower():
            wrong = "leave for other web pages"
        if wrong is None and not world.is_well():
            wrong = "a request in order is not served afterwards"
        if wrong:
            failed.append(f"{name}: {wrong}")
            print(f"FAILED {failed[-1]}", flush=True)
    return failed


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    world = World(sys.argv[1])
    failed = []
    try:
        make = Requests(world)
        trap = socket.create_server(("127.0.0.1", 0))
        trap.settimeout(0)
        cases = framing(make) + heads(make) + bodies(make) + browsers(make) + detours(make, trap.getsockname()[1])
        fresh = world.resident_mib()

        slow = slow_cases(world, make)
        found = {}
        threads = [threading.Thread(target=lambda name=name, run=run: found.update({name: run()})) for name, run in slow]
        for thread in threads:
            thread.start()
        failed += go_through(world, cases)
        for thread in threads:
            thread.join()
        for name, _ in slow:
            if found.get(name, "it did not run to its end"):
                failed.append(f"{name}: {found.get(name, 'it did not run to its end')}")
                print(f"FAILED {failed[-1]}", flush=True)
        if not world.is_well():
            failed.append("a request in order is not served after the slow ones")

        first = world.resident_mib()
        for _ in range(1, rounds):
            failed += go_through(world, cases)
        last = world.resident_mib()
        print(f"{len(cases)} cases x {rounds}, {len(slow)} slow ones; resident: {fresh:.1f} MiB, {first:.1f} after the first round, {last:.1f} at the end")
        if last - first > GROWTH_MIB or last - fresh > GROWTH_FROM_START_MIB:
            failed.append(f"resident memory grew: over {GROWTH_MIB} MiB since the first round, or {GROWTH_FROM_START_MIB} since the start")
        try:
            trap.accept()
            failed.append("the node knocked at a server that a request named")
        except BlockingIOError:
            pass
        trap.close()
        status, listed = world.ask("/admin/keys", key=world.token)
        if status != 200 or b"forged" in listed:
            failed.append(f"a forged request made a key, or the list of keys fails: {status}")

        if world.stop() != 0:
            failed.append(f"the node ended with {world.node.process.returncode}")
        if "panicked" in world.log_text():
            failed.append("a panic in the log")
        leaks, read = secrets_found(world.folder, {"the key's secret": world.key, "the admin token": world.token})
        print(f"looked for secrets in {read} bytes of data folder and log ({os.path.getsize(world.log)} of them the log)")
        failed += leaks
        if failed:
            print(world.log_text()[-6000:], file=sys.stderr)
    finally:
        world.close()
    if failed:
        print("failed:\n  " + "\n  ".join(failed), file=sys.stderr)
        return 1
    print("every case held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
