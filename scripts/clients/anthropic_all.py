"""The official Anthropic client for Python."""

import anthropic
from common import KEY, MODEL, NATIVE, ORIGIN, check, finish, raises

client = anthropic.Anthropic(base_url=ORIGIN, api_key=KEY, max_retries=0, timeout=60)
USER = [{"role": "user", "content": "hello"}]
TOOLS = [{"name": "weather", "description": "The weather.", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]

for model, want in [(MODEL, "You said: hello [system: be brief]"), (NATIVE, "natively")]:
    plain = client.messages.create(model=model, max_tokens=100, messages=USER, system="be brief")
    check(f"{model}", plain.content[0].text == want and plain.stop_reason == "end_turn", plain)
    with client.messages.stream(model=model, max_tokens=100, messages=USER, system="be brief") as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    check(f"{model}: streamed", text == want and final.content[0].text == want, final)
    check(f"{model}: usage", final.usage.output_tokens > 0 and final.usage.input_tokens > 0, final.usage)

seen = client.messages.create(model=MODEL, max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024}, messages=[{"role": "user", "content": [
    {"type": "text", "text": "look"}, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]}])
check("thinking and images", [block.type for block in seen.content] == ["thinking", "text"] and seen.content[1].text == "You said: look with 1 image", seen)
asked = client.messages.create(model=MODEL, max_tokens=100, messages=USER, tools=TOOLS, tool_choice={"type": "any"})
call = asked.content[-1]
check("tools: the call", (call.type, call.name, call.input, asked.stop_reason) == ("tool_use", "weather", {"city": "Zürich"}, "tool_use"), asked)
result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
answer = client.messages.create(model=MODEL, max_tokens=100, tools=TOOLS, messages=[
    *USER, {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in asked.content]}, {"role": "user", "content": [result]}])
check("tools: the result", answer.content[0].text == "The tool said: rain", answer)
with client.messages.stream(model=MODEL, max_tokens=100, messages=USER, tools=TOOLS) as stream:
    final = stream.get_final_message()
check("tools: streamed", final.content[-1].input == {"city": "Zürich"}, final)
count = client.messages.count_tokens(model=MODEL, messages=USER)
check("count_tokens", count.input_tokens > 0, count)

ask = lambda who=client, **more: who.messages.create(**{"model": MODEL, "max_tokens": 10, "messages": USER, **more})
raises("wrong key", anthropic.AuthenticationError, lambda: ask(anthropic.Anthropic(base_url=ORIGIN, api_key="sk-no", max_retries=0)))
error = raises("unknown model", anthropic.NotFoundError, lambda: ask(model="no-such-model"))
check("unknown model: shape", error is not None and error.body["error"]["type"] == "not_found_error", error)
error = raises("bad field", anthropic.BadRequestError, lambda: ask(tools=[{"type": "web_search_20250305", "name": "web_search"}]))
check("bad field: named", error is not None and error.body["error"]["param"] == "tools[0].type", error)
finish(f"anthropic {anthropic.__version__}", "messages, stream, tools, images, thinking, count_tokens, errors")
