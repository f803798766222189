#!/usr/bin/env python3
"""Kills a writing process again and again, and checks each time that nothing it acknowledged is gone.

    scripts/crash.py --kills 200              the ledger: vouchers, receipts, settlements, blocks
    scripts/crash.py --kills 1000 --cache     the cache of what can be rebuilt: it always opens, and never tells a lie

The writer says a line for each thing that is durable. It is killed (SIGKILL) at a random moment: while it opens the folder,
which is a recovery after the kill before, or in a phase of its work picked at random. Whatever it had said by then is
handed to a second process, which opens the folder, verifies all of it, and compares. A summary in JSON comes last; the
exit code is 1 if anything was lost, did not verify, or did not open.
"""

import argparse
import collections
import json
import os
import pathlib
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEDGER = {
    "package": "spillway-ledger",
    "example": "crash_writer",
    "phases": ["stream", "voucher", "receipt", "settle", "commit"],
}
CACHE = {"package": "spillway-cache", "example": "crash_cache", "phases": ["put", "remove", "flush"]}
# One kill in five hits the opening; a folder is replaced when it has grown this far, so that a check stays short.
OPEN_SHARE = 0.2
LIVES_MAX = 40
HEIGHT_MAX = 60
# A writer that says nothing for so long hangs, and that is a fault too.
SILENCE_S = 60


class Lines:
    """A process' output, line by line, read by a thread so that a full pipe never stops the writer."""

    def __init__(self, process):
        self.queue = queue.Queue()
        self.all = []
        self.thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self.thread.start()

    def _read(self, process):
        for line in process.stdout:
            if line.endswith("\n"):
                self.all.append(line)
                self.queue.put(line)
        self.queue.put(None)

    def next(self):
        return self.queue.get(timeout=SILENCE_S)


class Campaign:
    def __init__(self, kind, binary, kills, seed):
        self.kind, self.binary, self.kills, self.seed = kind, binary, kills, seed
        self.lock = threading.Lock()
        self.done = 0
        self.phases = collections.Counter()
        self.faults = []
        self.totals = collections.Counter()
        self.open_ms = 20.0

    def take(self):
        """The number of the next kill; None when there is none left."""
        with self.lock:
            if self.done >= self.kills or self.faults:
                return None
            self.done += 1
            return self.done

    def worker(self, number):
        work = tempfile.mkdtemp(prefix="spillway-crash-")
        try:
            folder, lives, said = None, 0, []
            while (kill := self.take()) is not None:
                if folder is None:
                    folder, lives, said = os.path.join(work, f"books-{kill}"), 0, []
                chance = random.Random(f"{self.seed} {number} {kill}")
                said += self.life(folder, chance)
                lives += 1
                full = lives >= LIVES_MAX
                report = self.check(folder, said, "rw" if full or chance.random() < 0.2 else "ro", kill)
                if report is None:
                    return
                if full or report.get("height", 0) >= HEIGHT_MAX:
                    self.totals["acknowledged"] += report["acknowledged"]
                    shutil.rmtree(folder)
                    folder = None
            if folder is not None and (report := self.check(folder, said, "rw", "the last")) is not None:
                self.totals["acknowledged"] += report["acknowledged"]
        except Exception as error:  # A fault of any kind ends the campaign with its words.
            self.faults.append(f"{type(error).__name__}: {error}")
        finally:
            if self.faults and folder is not None and os.path.isdir(folder):
                kept = tempfile.mkdtemp(prefix="spillway-crash-kept-")
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                self.faults.append(f"the folder is kept in {kept}")
            shutil.rmtree(work, ignore_errors=True)

    def life(self, folder, chance):
        """Starts a writer, kills it, and gives the lines it had said."""
        process = subprocess.Popen(
            [self.binary, "write", folder, str(chance.getrandbits(63))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started = time.monotonic()
        lines = Lines(process)
        complaint = []
        errors = threading.Thread(target=lambda: complaint.append(process.stderr.read()), daemon=True)
        errors.start()
        try:
            if chance.random() < OPEN_SHARE:
                time.sleep(chance.random() * self.open_ms / 1000)
            else:
                self.wait_for(lines, chance, started)
                # At its beginning, or into the middle of whatever it does.
                if chance.random() < 0.7:
                    time.sleep(chance.random() * 0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
        lines.thread.join()
        errors.join()
        said = lines.all
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the writer ended by itself ({code}): {''.join(complaint).strip()}")
        phase = next((line.split()[1] for line in reversed(said) if line.startswith("phase ")), "start")
        with self.lock:
            self.phases[phase] += 1
            self.totals["lines"] += sum(not line.startswith("phase ") for line in said)
            for line in said:
                if line == "aside\n":
                    self.totals["set_aside"] += 1
        return said

    def wait_for(self, lines, chance, started):
        phase, count = chance.choice(self.kind["phases"]), chance.randint(1, 8)
        while count:
            line = lines.next()
            if line is None:
                return
            if line.startswith("opened "):
                took = (time.monotonic() - started) * 1000
                with self.lock:
                    self.open_ms = 0.9 * self.open_ms + 0.1 * (1.2 * took)
            count -= line == f"phase {phase}\n"

    def check(self, folder, said, mode, kill):
        result = subprocess.run(
            [self.binary, "check", folder, mode],
            input="".join(said),
            capture_output=True,
            text=True,
            timeout=300,
        )
        if result.returncode != 0:
            self.faults.append(f"kill {kill}: {result.stderr.strip() or result.returncode}")
            return None
        report = json.loads(result.stdout.splitlines()[-1])
        with self.lock:
            self.totals["reopened"] += 1
            self.totals["reopened_for_writing"] += mode == "rw"
            for name in {"misses", "stale", "set_aside"} & report.keys():
                self.totals[name] += report[name]
        return report


def build(kind, profile):
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    command = ["cargo", "build", "--locked", "-p", kind["package"], "--example", kind["example"]]
    subprocess.run(command + (["--release"] if profile == "release" else []), cwd=ROOT, check=True)
    return str(target / profile / "examples" / kind["example"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cache", action="store_true", help="the cache in place of the ledger")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="writers at once, each in its own folder")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--profile", choices=["debug", "release"], default="debug")
    parser.add_argument("--binary", help="the writer, where it is built already")
    arguments = parser.parse_args()
    kind = CACHE if arguments.cache else LEDGER
    binary = arguments.binary or build(kind, arguments.profile)
    seed = random.getrandbits(32) if arguments.seed is None else arguments.seed

    campaign = Campaign(kind, binary, arguments.kills, seed)
    started = time.monotonic()
    workers = [threading.Thread(target=campaign.worker, args=(number,)) for number in range(arguments.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    whole = not campaign.faults and campaign.done == arguments.kills
    print(
        json.dumps(
            {
                "what": "cache" if arguments.cache else "ledger",
                "kills": sum(campaign.phases.values()),
                "in_phase": dict(sorted(campaign.phases.items())),
                **campaign.totals,
                "faults": campaign.faults,
                "seed": seed,
                "seconds": round(time.monotonic() - started, 1),
                "whole": whole,
            },
            indent=2,
        )
    )
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
