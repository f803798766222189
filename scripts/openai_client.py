"""Checks a running Spillway gateway with the official OpenAI client, changing nothing but base URL and key.

Arguments: the file with what `spillway demo --keep --json` printed, and the `spillway` binary.
Ends with 0 if every check held; prints each.
"""

import json
import subprocess
import sys

import openai

MODEL = "guide"
QUESTION = "what does this software do?"
failures = []


def check(what, held, seen=None):
    print(("ok      " if held else "FAILED  ") + what + ("" if held else f": {seen!r}"))
    if not held:
        failures.append(what)


def refused(what, call, kind, statuses):
    """`call` must raise `kind` with one of `statuses` and an error of OpenAI's shape; gives that error."""
    try:
        answer = call()
    except openai.APIStatusError as error:
        check(f"{what}: status", error.status_code in statuses, error.status_code)
        check(f"{what}: exception", isinstance(error, kind), type(error).__name__)
        body = error.body if isinstance(error.body, dict) else {}
        shape = isinstance(body.get("message"), str) and isinstance(body.get("type"), str) and "param" in body and "code" in body
        check(f"{what}: OpenAI's error shape", shape, error.body)
        return error
    except openai.OpenAIError as error:
        check(f"{what}: an error with a status", False, error)
        return None
    check(f"{what}: refused", False, answer)
    return None


def main():
    summary = json.load(open(sys.argv[1], encoding="utf-8"))
    binary = sys.argv[2]
    if summary["problems"]:
        print("the demo failed:", *summary["problems"], sep="\n  ", file=sys.stderr)
        return 1
    base_url, key = summary["base_url"], summary["api_key"]
    messages = [{"role": "user", "content": QUESTION}]
    # No retries: a status is to be seen the first time it comes.
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60)

    models = [model.id for model in client.models.list()]
    check("models.list names the model", MODEL in models, models)

    plain = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    text = plain.choices[0].message.content
    check("plain: the answer", text == summary["answer"], text)
    check("plain: finish_reason", plain.choices[0].finish_reason == "stop", plain.choices[0].finish_reason)
    usage = plain.usage
    counted = usage is not None and usage.completion_tokens > 0 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    check("plain: usage", counted, usage)

    parts, finishes, usages = [], [], []
    stream = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        if chunk.usage is not None:
            usages.append(chunk.usage)
        for choice in chunk.choices:
            parts.append(choice.delta.content or "")
            if choice.finish_reason:
                finishes.append(choice.finish_reason)
    check("stream: the same answer", "".join(parts) == text, "".join(parts))
    check("stream: in pieces", len([part for part in parts if part]) > 3, parts)
    check("stream: one finish_reason", finishes == ["stop"], finishes)
    check("stream: one usage", len(usages) == 1 and usages[0].completion_tokens == usage.completion_tokens, usages)

    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=messages, max_tokens=4)
    headers = raw.headers
    wanted = ["x-spillway-job", "x-spillway-route", "x-spillway-reason", "x-spillway-cost"]
    check("headers", all(headers.get(name) for name in wanted), dict(headers))

    completion = client.completions.create(model=MODEL, prompt="Spillway is", max_tokens=8, temperature=0)
    check("completions", bool(completion.choices[0].text), completion)

    stranger = openai.OpenAI(base_url=base_url, api_key="sk-spillway-00000000_" + "0" * 32, max_retries=0)
    ask = lambda who, **more: who.chat.completions.create(**{"model": MODEL, "messages": messages, **more})
    refused("wrong key", lambda: ask(stranger), openai.AuthenticationError, {401})
    refused("wrong key, listing models", lambda: list(stranger.models.list()), openai.AuthenticationError, {401})

    error = refused("unknown model", lambda: ask(client, model="no-such-model-9"), openai.NotFoundError, {404})
    check("unknown model: named", error is not None and "no-such-model-9" in error.message, error)

    made = subprocess.run(
        [binary, "key", "create", "--json", "--name", "poor", "--budget", "0.000001", "--folder", summary["folder"] + "/gateway"],
        check=True, capture_output=True, text=True,
    )
    poor = openai.OpenAI(base_url=base_url, api_key=json.loads(made.stdout)["secret"], max_retries=0)
    refused("exhausted budget", lambda: ask(poor), openai.APIStatusError, {402, 429})

    large = [{"role": "user", "content": "a" * (5 << 20)}]
    refused("5 MiB body", lambda: ask(client, messages=large), openai.APIStatusError, {413})

    refused("a field of the wrong type", lambda: ask(client, temperature="hot"), openai.BadRequestError, {400})

    if failures:
        print(f"{len(failures)} checks failed", file=sys.stderr)
        return 1
    print(f"every check held, with openai {openai.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
