"""The official OpenAI client for Python."""

import os

import openai
from common import BASE_URL, EMBEDDING, KEY, MODEL, NATIVE, check, finish, raises
from pydantic import BaseModel

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60)
USER = [{"role": "user", "content": "hello"}]
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
CHAT_TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": TOOL}}]
TOOLS = [{"type": "function", "name": "weather", "description": "The weather.", "parameters": TOOL, "strict": True}]


class Person(BaseModel):
    name: str
    age: int


def chats():
    models = [model.id for model in client.models.list()]
    check("models", {MODEL, NATIVE, EMBEDDING} <= set(models), models)
    plain = client.chat.completions.create(model=MODEL, messages=USER, extra_body={"x_extra": {"deep": [1, None]}})
    check("an unknown field reaches the server", plain.choices[0].message.content == 'You said: hello [extra: {"deep": [1, null]}]', plain)
    check("usage", plain.usage.prompt_tokens_details.cached_tokens == 4, plain.usage)
    pieces, usage = [], None
    for chunk in client.chat.completions.create(model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    check("stream", "".join(pieces) == "You said: hello", pieces)
    check("stream: usage", usage is not None and usage.prompt_tokens == 10, usage)
    seen = client.chat.completions.create(model=MODEL, logprobs=True, reasoning_effort="low", messages=[
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}])
    check("images", seen.choices[0].message.content == "You said: look with 1 image", seen)
    check("reasoning", seen.choices[0].message.reasoning_content == "thought about it", seen)
    check("logprobs", [token.logprob for token in seen.choices[0].logprobs.content] == [-0.25, -0.25], seen)


def tools():
    asked = client.chat.completions.create(model=MODEL, messages=USER, tools=CHAT_TOOLS)
    message = asked.choices[0].message
    call = message.tool_calls[0]
    check("tools: the call", (call.function.name, call.function.arguments) == ("weather", '{"city": "Zürich"}'), call)
    check("tools: finish_reason", asked.choices[0].finish_reason == "tool_calls", asked)
    answer = client.chat.completions.create(model=MODEL, tools=CHAT_TOOLS, messages=[
        *USER, message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "rain"}])
    check("tools: the result", answer.choices[0].message.content == "The tool said: rain", answer)
    with client.chat.completions.stream(model=MODEL, messages=USER, tools=CHAT_TOOLS) as stream:
        names = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message.tool_calls[0]
    check("tools: streamed", final.function.arguments == '{"city": "Zürich"}' and "tool_calls.function.arguments.done" in names, names)
    parsed = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Person)
    check("structured output", parsed.choices[0].message.parsed == Person(name="Ada Lovelace", age=36), parsed)


def others():
    texts = ["a", "four", "seven77"]
    default = client.embeddings.create(model=EMBEDDING, input=texts)
    floats = client.embeddings.create(model=EMBEDDING, input=texts, encoding_format="float")
    for answer in [default, floats]:
        check("embeddings", [vector.embedding[0] for vector in answer.data] == [1.0, 4.0, 7.0], answer)
    many = client.embeddings.create(model=EMBEDDING, input=["x" * 100] * 2048)
    check("2,048 embeddings", len(many.data) == 2048 and many.data[2047].embedding[3] == 2047.0, len(many.data))
    raw = client.embeddings.with_raw_response.create(model=EMBEDDING, input="a")
    check("embeddings: headers", raw.headers["x-spillway-route"] == os.environ["SPILLWAY_ROUTE"] and "x-spillway-cost" in raw.headers, dict(raw.headers))
    if os.environ["SPILLWAY_ROUTE"] == "network":
        check("embeddings are paid for", float(raw.headers["x-spillway-cost"]) > 0, dict(raw.headers))
    image = client.images.generate(model=MODEL, prompt="a pixel", n=2)
    check("images.generate", len(image.data) == 2 and image.data[0].b64_json.startswith("iVBOR"), image)
    sound = client.audio.speech.create(model=MODEL, voice="alloy", input="say it").read()
    check("audio.speech", sound.startswith(b"ID3") and len(sound) == 2000 * len(b"ID3\x03 not really sound \xff\xfb"), len(sound))
    text = client.audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF\x00\x01\r\n--"), language="de").text
    check("audio.transcriptions", text == "the recording said so", text)
    check("moderations", client.moderations.create(input="bad words").results[0].flagged, None)
    ranked = client.post("/rerank", cast_to=object, body={"model": MODEL, "query": "q", "documents": ["a", "bbb"]})
    check("rerank", ranked["results"][0]["index"] == 1, ranked)


def responses():
    for model, want in [(MODEL, "You said: hello [system: be brief]"), (NATIVE, "natively")]:
        plain = client.responses.create(model=model, input="hello", instructions="be brief")
        check(f"responses of {model}", plain.output_text == want and plain.status == "completed", plain)
        with client.responses.stream(model=model, input="hello", instructions="be brief") as stream:
            names = [event.type for event in stream]
            final = stream.get_final_response()
        check(f"responses of {model}: streamed", final.output_text == want, final)
        check(f"responses of {model}: events", names[0] == "response.created" and "response.output_text.delta" in names, names)
    asked = client.responses.create(model=MODEL, input=[{"role": "user", "content": "hello"}], tools=TOOLS, reasoning={"effort": "low"})
    check("responses: reasoning", asked.output[0].type == "reasoning" and asked.output[0].content[0].text == "thought about it", asked)
    call = asked.output[1]
    check("responses: the call", (call.name, call.arguments) == ("weather", '{"city": "Zürich"}'), asked)
    follow = [{"role": "user", "content": "hello"}, *[item.model_dump(exclude_none=True) for item in asked.output],
              {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    answer = client.responses.create(model=MODEL, input=follow, tools=TOOLS)
    check("responses: the result", answer.output_text == "The tool said: rain", answer)
    parsed = client.responses.parse(model=MODEL, input="who?", text_format=Person)
    check("responses: structured output", parsed.output_parsed == Person(name="Ada Lovelace", age=36), parsed)
    error = raises("a field without a place", openai.BadRequestError, lambda: client.responses.create(model=MODEL, input="a", previous_response_id="resp_1"))
    check("a field without a place: named", error is not None and error.param == "previous_response_id", error)


def errors():
    ask = lambda who=client, **more: who.chat.completions.create(**{"model": MODEL, "messages": USER, **more})
    raises("wrong key", openai.AuthenticationError, lambda: ask(openai.OpenAI(base_url=BASE_URL, api_key="sk-no", max_retries=0)))
    error = raises("unknown model", openai.NotFoundError, lambda: ask(model="no-such-model"))
    check("unknown model: code", error is not None and (error.code, error.param) == ("model_not_found", "model"), error)
    error = raises("bad field", openai.BadRequestError, lambda: ask(temperature="hot"))
    check("bad field: named", error is not None and error.param == "temperature", error)
    error = raises("endpoint not served", openai.NotFoundError, lambda: client.embeddings.create(model=NATIVE, input="a"))
    check("endpoint not served: code", error is not None and error.code == "endpoint_not_served", error)
    error = raises("the server's own refusal", openai.BadRequestError, lambda: ask(messages=[{"role": "user", "content": "this must be refused"}]))
    check("the server's own refusal: its words", error is not None and (error.code, error.param) == ("mock_refusal", "messages"), error)
    raises("too large", openai.APIStatusError, lambda: ask(messages=[{"role": "user", "content": "a" * (5 << 20)}]))
    # A provider that failed is left alone for some seconds; with no other one on the network, that long.
    again = {"messages": [{"role": "user", "content": f"fail once {os.environ['SPILLWAY_ROUTE']}"}]}
    answer = ask(client.with_options(max_retries=10), **again)
    check("retries", answer.choices[0].message.content == f"You said: {again['messages'][0]['content']}", answer)


chats()
tools()
others()
responses()
errors()
finish(f"openai {openai.__version__} for Python", "chat, stream, tools, structured output, embeddings, responses, media, errors, retries")
