"""A test double of an inference server, for what the models that ship with Spillway cannot do: tools, structured outputs,
embeddings, images, sound. Its answers are fixed rules, plainly no model's. It prints its base URL and serves until killed.

`/v1` has chats and the endpoints that are passed on as they are; `/native/v1` has Responses and Messages of its own.
"""

import base64
import json
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

failed = set()
lock = threading.Lock()

SPEECH = b"ID3\x03 not really sound \xff\xfb" * 2000
PIXEL = base64.b64encode(b"\x89PNG not really an image").decode()


def text_of(content):
    if isinstance(content, list):
        texts = [part.get("text", "") for part in content if part.get("type") == "text"]
        images = [part for part in content if part.get("type") == "image_url"]
        return "".join(texts) + (f" with {len(images)} image" if images else "")
    return content or ""


def fails_once(text):
    """Whether this is the first request of a text that asks for one failure."""
    if not text.startswith("fail once "):
        return False
    with lock:
        if text in failed:
            return False
        failed.add(text)
        return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def say(self, status, body, content_type="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, events, named=False):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for event in events:
            name = f"event: {event['type']}\n" if named else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        if not named:
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def do_GET(self):
        names = ["mock-native"] if self.path.startswith("/native") else ["mock-model", "mock-embedding"]
        self.say(200, {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "mock"} for name in names]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.removeprefix("/native").removeprefix("/v1/")
        if path == "audio/transcriptions":
            said = b"RIFF" in body and b'name="model"' in body and b"mock-model" in body
            return self.say(200, {"text": "the recording said so" if said else "no recording"})
        request = json.loads(body)
        handler = {
            "chat/completions": self.chat,
            "completions": self.completion,
            "embeddings": self.embeddings,
            "responses": self.native_responses,
            "messages": self.native_messages,
            "rerank": self.rerank,
            "images/generations": lambda request: self.say(200, {"created": 1, "data": [{"b64_json": PIXEL}] * min(request.get("n") or 1, 10)}),
            "audio/speech": lambda request: self.say(200, SPEECH, "audio/mpeg"),
            "moderations": self.moderations,
        }.get(path)
        if handler is None:
            return self.say(404, {"error": {"message": "no such path"}})
        handler(request)

    def chat(self, request):
        messages = request["messages"]
        last = messages[-1]
        said = text_of(last.get("content"))
        if fails_once(said):
            return self.say(500, {"error": {"message": "this once"}})
        if "must be refused" in said:
            return self.say(400, {"error": {"message": "refused", "type": "invalid_request_error", "param": "messages", "code": "mock_refusal"}})

        def chunk(delta, finish=None, **more):
            choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
            return {"id": "mock-1", "object": "chat.completion.chunk", "created": 1, "model": request["model"], "choices": [choice]}

        events = [chunk({"role": "assistant", "content": ""})]
        if request.get("reasoning_effort"):
            events.append(chunk({"reasoning_content": "thought about it"}))
        tools = request.get("tools")
        finish = "stop"
        if tools and last["role"] != "tool" and request.get("tool_choice") != "none":
            function = {"name": tools[0]["function"]["name"], "arguments": ""}
            events.append(chunk({"tool_calls": [{"index": 0, "id": "call_mock_1", "type": "function", "function": function}]}))
            for piece in ['{"city": ', '"Zürich"}']:
                events.append(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
            finish = "tool_calls"
        else:
            if (request.get("response_format") or {}).get("type") == "json_schema":
                pieces = ['{"name": "Ada', ' Lovelace", ', '"age": 36}']
            elif last["role"] == "tool":
                pieces = ["The tool said: ", said]
            else:
                systems = [text_of(message["content"]) for message in messages if message["role"] == "system"]
                extra = request.get("x_extra")
                pieces = ["You said: ", said] + [f" [system: {text}]" for text in systems] + ([f" [extra: {json.dumps(extra)}]"] if extra else [])
            for piece in pieces:
                more = {}
                if request.get("logprobs"):
                    more["logprobs"] = {"content": [{"token": piece, "logprob": -0.25, "bytes": None, "top_logprobs": []}]}
                events.append(chunk({"content": piece}, **more))
        events.append(chunk({}, finish))
        usage = {"prompt_tokens": 10, "completion_tokens": len(events) - 2, "total_tokens": 8 + len(events), "prompt_tokens_details": {"cached_tokens": 4}}
        events.append({"id": "mock-1", "object": "chat.completion.chunk", "created": 1, "model": request["model"], "choices": [], "usage": usage})
        self.stream(events)

    def completion(self, request):
        prompts = request["prompt"]
        if not isinstance(prompts, list) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        if not prompts:
            return self.say(400, {"error": {"message": "prompt: empty", "param": "prompt"}})

        def chunk(index, text, finish=None):
            choice = {"index": index, "text": text, "finish_reason": finish, "logprobs": None}
            return {"id": "mock-2", "object": "text_completion", "created": 1, "model": request["model"], "choices": [choice]}

        events = []
        for index in range(len(prompts) * (request.get("n") or 1)):
            prompt = prompts[index % len(prompts)]
            events.append(chunk(index, "and so on: " + (prompt if isinstance(prompt, str) else f"{len(prompt)} tokens")))
            events.append(chunk(index, "", "stop"))
        usage = {"prompt_tokens": 5, "completion_tokens": len(events), "total_tokens": 5 + len(events)}
        events.append({"id": "mock-2", "object": "text_completion", "created": 1, "model": request["model"], "choices": [], "usage": usage})
        self.stream(events)

    def embeddings(self, request):
        texts = request["input"]
        texts = [texts] if isinstance(texts, str) or (texts and isinstance(texts[0], int)) else texts
        data = []
        for index, text in enumerate(texts):
            vector = [float(len(text)), 0.5, -0.25, float(index)]
            if request.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack("<4f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        self.say(200, {"object": "list", "data": data, "model": request["model"], "usage": usage})

    def rerank(self, request):
        order = sorted(range(len(request["documents"])), key=lambda index: -len(request["documents"][index]))
        self.say(200, {"results": [{"index": index, "relevance_score": 1 / (place + 1)} for place, index in enumerate(order)]})

    def moderations(self, request):
        result = {"flagged": "bad" in json.dumps(request["input"]), "categories": {}, "category_scores": {}, "category_applied_input_types": {}}
        self.say(200, {"id": "modr-mock", "model": request["model"], "results": [result]})

    def native_responses(self, request):
        item = {"id": "msg_native", "type": "message", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "natively", "annotations": [], "logprobs": []}]}
        usage = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 2,
                 "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7}
        whole = {"id": "resp_native", "object": "response", "created_at": 1, "status": "completed", "model": request["model"],
                 "output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage}
        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        at = {"item_id": "msg_native", "output_index": 0, "content_index": 0}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        events = [
            {"type": "response.created", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress", "content": []}},
            {"type": "response.content_part.added", **at, "part": part},
            {"type": "response.output_text.delta", **at, "delta": "nati", "logprobs": []},
            {"type": "response.output_text.delta", **at, "delta": "vely", "logprobs": []},
            {"type": "response.output_text.done", **at, "text": "natively", "logprobs": []},
            {"type": "response.content_part.done", **at, "part": item["content"][0]},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": whole},
        ]
        self.stream([{**event, "sequence_number": index} for index, event in enumerate(events)], named=True)

    def native_messages(self, request):
        if self.headers.get("anthropic-version") is None:
            return self.say(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "anthropic-version: missing"}})
        message = {"id": "msg_native", "type": "message", "role": "assistant", "model": request["model"], "content": [],
                   "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 1}}
        self.stream([
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "nati"}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "vely"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ], named=True)


def serve(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    serve(Handler)
