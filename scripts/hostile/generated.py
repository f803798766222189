"""Requests generated from `/openapi.json`, those that fit the description and those that do not, against a node of its own.

Arguments: the `spillway` binary, how many requests each operation gets, and, if only some operations are wanted, their ids.
No answer may be a fault of the node: a 5xx is one, but for 502 and 503 with a code that says that a backend or a provider is at
fault. At the end the node still serves, has not panicked, and has grown no more than the keys and projects it was asked to make.
Ends with 0 if all of that held. The requests are the same in each run.
"""

import collections
import json
import sys
import time

import hypothesis
import requests
import schemathesis
from hypothesis import strategies

from node import World, secrets_found

# Who is at fault, if not the node: a provider, the backend, or nobody offers the model.
NOT_OURS = {
    502: {"provider_stalled", "upstream_error"},
    503: {"model_not_local", "price_cap", "no_offer", "own_unhealthy", "no_place", "provider_refused", "provider_preempted"},
}
MODELS = ["mock-model", "mock-embedding", "mock-native"]
# Resident memory at the end, above that at the start: room for caches and for the keys and projects that were made.
GROWTH_MIB = 128
TIMEOUT_S = 90
# Requests per search; a search that runs out of new ones begins anew with another seed.
SEARCH = 2000


def is_operators(path):
    return path.startswith(("/admin/", "/key/", "/spend/", "/api/v1/keys"))


def is_ours(response):
    """Whether a 5xx is this node's fault."""
    if response.status_code < 500:
        return False
    try:
        code = json.loads(response.content)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return True
    return code not in NOT_OURS.get(response.status_code, set())


def known_ids(world):
    """Ids of a key and of a project, made for requests to change and to delete, of a job, and a model."""
    ids = [json.loads(world.ask(path, {"name": "generated"}, world.token)[1])["id"] for path in ("/admin/keys", "/admin/projects")]
    assert world.is_well()
    return [*ids, world.job, MODELS[0]]


class Operation:
    """The requests to one operation, and what came of them."""

    def __init__(self, world, operation, session, known):
        self.world, self.operation, self.session, self.known = world, operation, session, known
        self.secret = world.token if is_operators(operation.path) else world.key
        session.auth = self.sign
        self.statuses = collections.Counter()
        self.faults = {}

    def sign(self, request):
        """Puts the right key in. Wrong ones are the raw requests' matter: here they would keep all else from being looked at."""
        request.headers.pop("x-api-key", None)
        request.headers["Authorization"] = f"Bearer {self.secret}"
        return request

    def send(self, case, model, known):
        body = case.body if isinstance(case.body, dict) else {}
        if model and "model" in body:
            body["model"] = model
        for place in [case.path_parameters or {}, case.query or {}, body]:
            for name in known and place.keys() & {"id", "hash", "job", "key", "api_key"} or ():
                place[name] = known
        if known and body.get("keys"):
            body["keys"] = [known]
        try:
            response = case.call(
                base_url=self.world.origin, session=self.session, timeout=TIMEOUT_S, allow_redirects=False,
            )
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
            return  # Nothing was sent: these bytes are no request to this library.
        except requests.exceptions.RequestException as error:
            self.fault(f"no answer: {error!r}", case)
            return
        self.statuses[response.status_code] += 1
        if is_ours(response):
            self.fault(f"{response.status_code} {response.content[:200]!r}", case)

    def fault(self, what, case):
        """Kept once for each kind."""
        self.faults.setdefault(what[:60], f"{what}: {case.as_curl_command()[:2000]}")

    def run(self, wanted):
        seed = 0
        while self.statuses.total() < wanted and seed < 20 + wanted // 10:
            for mode in schemathesis.GenerationMode:
                left = wanted - self.statuses.total()
                if left > 0:
                    self.search(mode, seed, min(left, max(1, min(wanted // 2, SEARCH))))
            seed += 1

    def search(self, mode, seed, examples):
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=examples, database=None, deadline=None, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(
            case=self.operation.as_strategy(generation_mode=mode),
            model=strategies.sampled_from([None, *MODELS]),
            known=strategies.sampled_from([None, *self.known]),
        )
        def each(case, model, known):
            self.send(case, model, known)

        try:
            each()
        except (hypothesis.errors.Unsatisfiable, hypothesis.errors.FailedHealthCheck):
            pass  # An operation without input cannot be asked in a wrong way.


def main():
    wanted, only = int(sys.argv[2]), set(sys.argv[3:])
    world = World(sys.argv[1])
    failed = []
    try:
        status, text = world.ask("/openapi.json")
        assert status == 200, status
        schema = schemathesis.openapi.from_dict(json.loads(text))
        session = requests.Session()
        session.trust_env = False
        before = world.resident_mib()
        total = collections.Counter()
        for result in schema.get_all_operations():
            operation = result.ok()
            if only and operation.definition.raw["operationId"] not in only:
                continue
            begun = time.monotonic()
            trial = Operation(world, operation, session, known_ids(world))
            trial.run(wanted)
            total += trial.statuses
            name = f"{operation.method.upper()} {operation.path}"
            told = " ".join(f"{status}:{count}" for status, count in sorted(trial.statuses.items()))
            print(f"{name}: {trial.statuses.total()} in {time.monotonic() - begun:.1f} s: {told}", flush=True)
            failed += [f"{name}: {fault}" for fault in trial.faults.values()]
            if trial.statuses.total() < wanted:
                failed.append(f"{name}: only {trial.statuses.total()} requests were sent")
            if not world.is_well():
                failed.append(f"{name}: a request in order is not served afterwards")
        after = world.resident_mib()
        print(f"{total.total()} requests; resident: {before:.1f} MiB before, {after:.1f} MiB after")
        if after - before > GROWTH_MIB:
            failed.append(f"resident memory grew by over {GROWTH_MIB} MiB")
        if world.stop() != 0:
            failed.append(f"the node ended with {world.node.process.returncode}")
        if "panicked" in world.log_text():
            failed.append("a panic in the log")
        failed += secrets_found(world.folder, {"the key's secret": world.key, "the admin token": world.token})[0]
        if failed:
            print(world.log_text()[-6000:], file=sys.stderr)
    finally:
        world.close()
    if failed:
        print("failed:\n  " + "\n  ".join(failed), file=sys.stderr)
        return 1
    print("no fault of the node")
    return 0


if __name__ == "__main__":
    sys.exit(main())
