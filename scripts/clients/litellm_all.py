"""LiteLLM as a client, by OpenAI's chats and by Anthropic's messages."""

import os
from importlib.metadata import version

# Its prices come with it; it would fetch newer ones.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from common import BASE_URL, EMBEDDING, KEY, MODEL, ORIGIN, check, finish, raises

litellm.telemetry = False
litellm.suppress_debug_info = True
USER = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]

for name, base in [(f"openai/{MODEL}", BASE_URL), (f"anthropic/{MODEL}", ORIGIN)]:
    ask = lambda **more: litellm.completion(**{"model": name, "messages": USER, "api_base": base, "api_key": KEY, "max_tokens": 100, "timeout": 60, **more})
    plain = ask()
    check(f"{name}: completion", plain.choices[0].message.content == "You said: hello", plain)
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True)]
    check(f"{name}: stream", "".join(pieces) == "You said: hello", pieces)
    called = ask(tools=TOOLS)
    check(f"{name}: tools", "Zürich" in called.choices[0].message.tool_calls[0].function.arguments.encode().decode("unicode_escape") or "Zürich" in called.choices[0].message.tool_calls[0].function.arguments, called)
    raises(f"{name}: wrong key", litellm.AuthenticationError, lambda: ask(api_key="sk-no"))
    raises(f"{name}: unknown model", litellm.NotFoundError, lambda: ask(model=name.replace(MODEL, "no-such-model")))

vectors = litellm.embedding(model=f"openai/{EMBEDDING}", input=["a", "four"], api_base=BASE_URL, api_key=KEY)
check("embedding", [vector["embedding"][0] for vector in vectors.data] == [1.0, 4.0], vectors)
answer = litellm.responses(model=f"openai/{MODEL}", input="hello", api_base=BASE_URL, api_key=KEY)
check("responses", answer.output[-1].content[0].text == "You said: hello", answer)
finish(f"litellm {version('litellm')}", "completion, stream, tools, embedding, responses, errors")
