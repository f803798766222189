#!/usr/bin/env python3
"""Checks the summary that `spillway demo --json` printed: every field, and that the money adds up."""

import json
import sys

summary = json.load(open(sys.argv[1], encoding="utf-8"))
jobs, settled = summary["jobs"], summary["settled"]
checks = {
    "jobs.failed is 0": jobs["failed"] == 0,
    "jobs.own is at least 1": jobs["own"] >= 1,
    "jobs.network is at least 2": jobs["network"] >= 2,
    "jobs.total is own + network": jobs["total"] == jobs["own"] + jobs["network"] + jobs["failed"],
    "at least 2 providers": summary["providers"] >= 2,
    "reasons are codes": bool(summary["reasons"]) and all(r.replace("_", "").isalnum() and n > 0 for r, n in summary["reasons"].items()),
    "own_free and own_saturated occur": {"own_free", "own_saturated"} <= set(summary["reasons"]),
    "something was settled": settled["gross"] > 0,
    "the provider's part is at least 70 %": settled["provider"] * 10 >= settled["gross"] * 7,
    "the parts sum to the gross exactly": settled["provider"] + settled["network"] == settled["gross"],
    "the books verify": summary["ledger_verified"] is True,
    "the answer is a sentence": len(summary["answer"].split()) >= 5 and summary["answer"].strip().endswith("."),
}
bad = [what for what, good in checks.items() if not good]
for what in bad:
    print(f"FAILED: {what}")
print(f"demo: {len(checks) - len(bad)} passed, {len(bad)} failed")
sys.exit(bool(bad))
