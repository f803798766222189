"""Soaks two nodes: a gateway with a backend of its own that buys one model of another node.

Arguments: the `spillway` binary, the load generator, minutes, and the folder for soak.jsonl and soak.svg. First it looks for the rate
that saturates the gateway, then it keeps half of it up. Ends with 0 if no answer was lost, nothing stayed set aside, no memory and
descriptors went on growing (from 10 minutes on), and the books verify on both nodes. Latency is written down and judged by nobody:
this machine may do other things beside.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "clients"))
sys.path.insert(0, HERE)

from plot import plot  # noqa: E402
from run import Node  # noqa: E402

# Requests a second: the first to be tried, and how each next one compares.
RATE_FIRST, RATE_STEP = 50.0, 1.3
# How long each is tried, in seconds.
RATE_TRIED_S = 10
# How long a client stalls, as the load generator has it: so much later the last one ends at any rate.
STALL_S = 8
# What is too slow: the 99th percentile of the time to a stream's first event, in milliseconds.
SATURATED_MS = 250
SAMPLE_EVERY_S = 5
# From so long a run on growth is judged, in seconds: caches fill in its first third.
GROWTH_JUDGED_FROM_S = 600
# How much more of something may be held in the last third than in the middle one, in MiB and descriptors.
GROWTH_MAX = {"rss_mib": 40, "descriptors": 40}
PATIENCE_S = 180


class Watched:
    """A node's process, as the system sees it."""

    def __init__(self, name, pid):
        self.name, self.pid = name, pid
        self.cpu_before = self.cpu_s()

    def cpu_s(self):
        with open(f"/proc/{self.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def sample(self):
        with open(f"/proc/{self.pid}/status", encoding="utf-8") as file:
            text = file.read()
        number = lambda name: int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE).group(1))  # noqa: E731
        now = self.cpu_s()
        cpu, self.cpu_before = now - self.cpu_before, now
        return {"rss_mib": round(number("VmRSS") / 1024, 1), "threads": number("Threads"), "descriptors": len(os.listdir(f"/proc/{self.pid}/fd")), "cpu_s": round(cpu, 2)}


class Machine:
    """Where the time of all processors went since the last sample, in percent: idle, and taken by the host of a virtual machine."""

    def __init__(self):
        self.before = self.ticks()

    @staticmethod
    def ticks():
        with open("/proc/stat", encoding="utf-8") as file:
            return [int(field) for field in file.readline().split()[1:9]]

    def sample(self):
        now = self.ticks()
        spent = [after - before for after, before in zip(now, self.before)]
        self.before = now
        share = lambda ticks: round(100 * ticks / max(1, sum(spent)), 1)  # noqa: E731
        return {"idle": share(spent[3] + spent[4]), "stolen": share(spent[7])}


class Soak:
    def __init__(self, binary, load, folder):
        self.binary, self.load, self.folder = os.path.abspath(binary), os.path.abspath(load), folder
        self.work = tempfile.TemporaryDirectory(prefix="spillway-soak-")
        self.log = open(os.path.join(folder, "soak.jsonl"), "w", encoding="utf-8")
        self.nodes = []
        self.lock = threading.Lock()
        self.lines = []

    def note(self, line):
        with self.lock:
            self.lines.append(line)
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()

    def start(self):
        self.upstream = subprocess.Popen([self.load, "mock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.origin = self.upstream.stdout.readline().strip()
        slots = ("slots = 4                     # requests at once", "slots = 1024")
        # What a node logs of each job would be most of what it writes.
        os.environ.setdefault("RUST_LOG", "warn")
        self.seller = Node(self.binary, os.path.join(self.work.name, "seller"), ["--backend", f"{self.origin}/far/v1"], [
            slots, ("enabled = false", "enabled = true"), ("reserved_slots = 1", "reserved_slots = 0"), ("settle_after_s = 60.0", "settle_after_s = 5.0"),
        ])
        self.nodes.append(self.seller)
        genesis = os.path.join(self.seller.folder, "genesis.json")
        joining = ["--network", genesis, "--authority", self.seller.ready["peer_id"], "--bootstrap", self.seller.ready["addresses"][0]]
        self.gateway = Node(self.binary, os.path.join(self.work.name, "gateway"), [*joining, "--backend", f"{self.origin}/own/v1"], [slots])
        self.nodes.append(self.gateway)
        self.seller.spillway("ledger", "mint", "--to", self.gateway.ready["account"], "--amount", "100000", "--reference", "soak")
        # With limits, so that each job is accounted for in every way.
        project = json.loads(self.gateway.spillway("project", "create", "--json", "--name", "soak", "--budget-month", "50000"))["id"]
        made = json.loads(self.gateway.spillway(
            "key", "create", "--json", "--name", "soak", "--project", project, "--budget", "50000", "--requests-per-minute", "1000000",
            "--tokens-per-minute", "1000000000", "--concurrency", "100000",
        ))
        self.key, self.key_id = made["secret"], made["id"]
        self.base_url = self.gateway.ready["base_url"]
        end = time.monotonic() + PATIENCE_S
        for model in ["soak-own", "soak-far"]:
            while not self.served(model):
                if time.monotonic() > end:
                    sys.exit(f"{model} was not served within {PATIENCE_S} s")
                time.sleep(0.5)

    def served(self, model):
        body = {"model": model, "messages": [{"role": "user", "content": "first"}], "x_soak": {"events": 2, "gap_us": 0, "pad": 0}}
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        request = urllib.request.Request(f"{self.base_url}/chat/completions", data=json.dumps(body).encode(), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self):
        request = urllib.request.Request(self.base_url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()

    def metric(self, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.metrics().splitlines() if re.match(rf"{name}(\{{|\s)", line))

    def keep_up(self, rate, seconds, tell):
        """Runs the load; its total. `tell` gets each line of figures."""
        command = [self.load, "load", self.base_url, self.key, f"{rate:.3f}", str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        total = None
        for line in process.stdout:
            line = json.loads(line)
            total = line.get("total", total)
            if "figures" in line:
                tell(line["figures"])
        why = process.stderr.read().strip()
        process.wait()
        return total, why

    def saturating(self):
        """The highest rate that is still served in time."""
        rate, last = RATE_FIRST, 0.0
        while True:
            total, why = self.keep_up(rate, RATE_TRIED_S, lambda _: None)
            p99 = total["first_ms"]["p99"] if total else None
            refused = sum((total or {}).get("failed", {}).values())
            self.note({"tried": {"rate": round(rate, 1), "first_p99_ms": p99, "failed": refused, "why": why}})
            print(f"at {rate:.0f}/s: first event p99 {p99} ms, {refused} refused {why}", flush=True)
            if p99 is None or p99 > SATURATED_MS or refused > total["begun"] / 100 or total["second"] > RATE_TRIED_S * 1.5 + STALL_S:
                return last
            rate, last = rate * RATE_STEP, rate

    def settled(self):
        """Waits until nothing is under way and nothing set aside; what the key is at last."""
        end = time.monotonic() + PATIENCE_S
        while True:
            key = next(key for key in json.loads(self.gateway.spillway("key", "list", "--json"))["keys"] if key["id"] == self.key_id)
            project = json.loads(self.gateway.spillway("project", "list", "--json"))["projects"][0]
            still = {"reserved": key["reserved_micro"], "running": key["running"], "of_project": project["reserved_micro"], "jobs": self.metric("spillway_jobs_running")}
            if not any(still.values()):
                return {"spent_micro": key["spent_micro"], "of_project": project["spent_micro"]}, None
            if time.monotonic() > end:
                return {"spent_micro": key["spent_micro"]}, f"still there after {PATIENCE_S} s: {still}"
            time.sleep(1)

    def grown(self, seconds):
        """What went on growing, by the medians of the middle third and of the last one."""
        if seconds < GROWTH_JUDGED_FROM_S:
            return []
        samples = [line["sample"] for line in self.lines if "sample" in line]
        faults = []
        for name in ["gateway", "seller"]:
            for what, most in GROWTH_MAX.items():
                third = lambda begin, end: statistics.median(  # noqa: E731
                    sample[name][what] for sample in samples if begin * seconds <= sample["second"] * 3 < end * seconds)
                middle, last = third(1, 2), third(2, 3)
                if last - middle > most:
                    faults.append(f"{what} of the {name} went from {middle:.0f} in the middle third to {last:.0f} in the last")
        return faults

    def counts(self):
        with urllib.request.urlopen(self.origin + "/counts", timeout=60) as response:
            return json.load(response)

    def run(self, minutes):
        self.start()
        faults = []
        watched = [Watched("gateway", self.gateway.process.pid), Watched("seller", self.seller.process.pid)]
        self.note({"idle": {one.name: one.sample() for one in watched}})
        # A rate that is given is kept: on a machine that others use, what saturates the gateway cannot be found.
        given = float(os.environ.get("SPILLWAY_SOAK_RATE", 0))
        most = given * 2 or self.saturating()
        if not most:
            sys.exit(f"{RATE_FIRST}/s is too much already")
        _, fault = self.settled()
        faults += [f"after the search for the rate: {fault}"] if fault else []
        # Counted from here on.
        jobs_before = self.metric("spillway_jobs_total")
        rate = most / 2
        print(f"{minutes} minutes at {rate:.0f}/s" + ("" if given else f", half of {most:.0f}/s, which is the most"), flush=True)
        self.note({"rate": round(rate, 1), "saturating": None if given else round(most, 1), "minutes": minutes, "cores": os.cpu_count()})
        over = threading.Event()
        machine = Machine()
        began = time.monotonic()

        def sampling():
            while not over.wait(SAMPLE_EVERY_S):
                self.note({"sample": {"second": round(time.monotonic() - began), "machine": machine.sample(), **{one.name: one.sample() for one in watched}}})

        sampler = threading.Thread(target=sampling, daemon=True)
        sampler.start()

        def tell(figures):
            self.note({"figures": figures})
            if figures["second"] % 60 < 10:
                with self.lock:
                    sample = next((line["sample"] for line in reversed(self.lines) if "sample" in line), {})
                held = {name: (sample[name]["rss_mib"], sample[name]["descriptors"]) for name in ["gateway", "seller"] if name in sample}
                print(f"{figures['second']:5} s  first p50 {figures['first_ms']['p50']} p99 {figures['first_ms']['p99']} ms, whole p99 "
                      f"{figures['whole_ms']['p99']} ms; MiB and descriptors {held}; machine {sample.get('machine')} %; lost {figures['lost']}, failed {figures['failed']}", flush=True)

        total, why = self.keep_up(rate, round(minutes * 60), tell)
        over.set()
        sampler.join()
        faults += [why] if why else []
        faults += self.grown(minutes * 60)
        spent, fault = self.settled()
        faults += [fault] if fault else []
        # A moment after the load: what is held by nobody any more.
        rest = {one.name: one.sample() for one in watched}
        jobs = round(self.metric("spillway_jobs_total") - jobs_before)
        if total is None or total["jobs"] != jobs:
            faults.append(f"the gateway ended {jobs} jobs, its clients saw {total and total['jobs']}")
        for key, value in [("key", spent.get("spent_micro")), ("project", spent.get("of_project"))]:
            if value != spent["spent_micro"]:
                faults.append(f"the {key} is charged {value}, the key {spent['spent_micro']}")
        books = {}
        for name, node in [("gateway", self.gateway), ("seller", self.seller)]:
            node.stop()
            verified = json.loads(node.spillway("ledger", "verify", "--json"))
            books[name] = {"verified": verified["verified"], "settled_gross": verified["settled_gross"]}
            if not verified["verified"]:
                faults.append(f"the books of the {name}: {verified}")
            if node.process.returncode:
                faults.append(f"the {name} ended with {node.process.returncode}")
            with open(node.log.name, encoding="utf-8") as file:
                if "panicked" in (text := file.read()):
                    faults.append(f"the {name} panicked: {text[-2000:]}")
        self.nodes.clear()
        end = {"total": total, "upstream": self.counts(), "jobs": jobs, "spent": spent, "at_rest": rest, "books": books, "faults": faults}
        self.note({"end": end})
        with open(os.path.join(self.folder, "soak.svg"), "w", encoding="utf-8") as file:
            file.write(plot(self.lines))
        print(json.dumps(end, indent=2))
        print(f"wrote {self.folder}/soak.jsonl and soak.svg")
        return 1 if faults else 0

    def close(self):
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        if self.upstream.poll() is None:
            self.upstream.stdin.close()
            self.upstream.wait(timeout=60)
        self.work.cleanup()


def main():
    binary, load, minutes, folder = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
    os.makedirs(folder, exist_ok=True)
    soak = Soak(binary, load, folder)
    try:
        return soak.run(minutes)
    finally:
        soak.close()


if __name__ == "__main__":
    sys.exit(main())
