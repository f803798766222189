"""What the checks of the clients share: where the gateway is, and how a check is told."""

import os
import sys

BASE_URL = os.environ["SPILLWAY_BASE_URL"]
ORIGIN = BASE_URL.removesuffix("/v1")
KEY = os.environ["SPILLWAY_KEY"]
MODEL = "mock-model"
NATIVE = "mock-native"
EMBEDDING = "mock-embedding"
failures = []


def check(what, held, seen=None):
    if not held:
        print(f"FAILED  {what}: {seen!r}")
        failures.append(what)


def raises(what, kind, call):
    """`call` must raise `kind`; gives the error."""
    try:
        answer = call()
    except kind as error:
        return error
    except Exception as error:
        check(f"{what}: {kind.__name__}", False, error)
        return None
    check(f"{what}: {kind.__name__}", False, answer)
    return None


def finish(client, count):
    """Ends the program."""
    if failures:
        print(f"{len(failures)} checks failed with {client}", file=sys.stderr)
        sys.exit(1)
    print(f"ok      {client}: {count}")
