#!/usr/bin/env python3
"""Cuts simulator/data/ out of the full public tables and traces. Standard library, and zstd for what is compressed.

    scripts/cut_data.py SOURCE    # a folder with workload/, latency/ and price/ as docs/simulator.md "Workloads" names them

The same source gives the same bytes. Prints what each cut holds, beside the whole, so that a reader sees what was lost.
"""

import collections
import csv
import io
import json
import pathlib
import subprocess
import sys

OUT = pathlib.Path(__file__).resolve().parent.parent / "simulator" / "data"

# Day 9, noon, to day 10, noon: of all the 24-hour stretches the one with the most swing, peak over mean 2.96 and peak over
# trough 9.4, which is what the whole fortnight has (2.98). The other days lie between 1.2 and 2.7.
SERVEGEN_FROM_S = (9 * 24 + 12) * 3600
SERVEGEN_SPAN_S = 24 * 3600
# Four minutes: enough for the readers' tests and a first look.
AZURE_ROWS = 1300
MOONCAKE_BEFORE_MS = 300_000

MODELS = ["llama-3.1-8b", "llama-3.3-70b", "qwen3-8b", "qwen3-32b", "gpt-oss-120b", "deepseek-v3.1"]
# The two sources name some hosts differently.
HOSTS = {
    "amazon-bedrock": "bedrock", "bedrock_converse": "bedrock", "azure-cognitive-services": "azure", "azure_ai": "azure",
    "novita-ai": "novita", "togetherai": "together", "together_ai": "together", "cloudflare-workers-ai": "cloudflare",
    "fireworks-ai": "fireworks", "fireworks_ai": "fireworks", "google-vertex": "vertex", "siliconflow-cn": "siliconflow",
    "nebius": "nebius", "alibaba-cn": "alibaba", "lambda_ai": "lambda", "gradient_ai": "digitalocean",
}


def plain(path):
    """The text of a file, plain or .zst."""
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout.decode()
    return path.read_text()


def write(name, text):
    """Writes a file, compressed if its name says so."""
    path, data = OUT / name, text.encode()
    if path.suffix == ".zst":
        data = subprocess.run(["zstd", "-19", "-c", "-q"], input=data, check=True, capture_output=True).stdout
    path.write_bytes(data)
    print(f"{name}: {len(data)} bytes")


def azure(source):
    lines = plain(source / "workload" / "azure2023_conv.csv").splitlines()
    write("azure_conv.csv", "\n".join(lines[: AZURE_ROWS + 1]) + "\n")


def mooncake(source):
    rows = plain(source / "workload" / "mooncake_conversation.jsonl.zst").splitlines()
    kept = [row for row in rows if json.loads(row)["timestamp"] < MOONCAKE_BEFORE_MS]
    write("mooncake_conversation.jsonl.zst", "\n".join(kept) + "\n")


def swing(rows):
    """Mean rate, peak over mean, peak over trough and the ten greatest clients' share."""
    windows, clients = collections.Counter(), collections.Counter()
    for row in rows:
        windows[row["window_start_s"]] += float(row["rate_rps"])
        clients[row["client"]] += float(row["rate_rps"])
    total = sum(windows.values())
    mean = total / len(windows)
    top = sum(rate for _, rate in clients.most_common(10)) / total
    peak, trough = max(windows.values()), min(windows.values())
    return (f"{len(rows)} rows, mean {mean:.1f}/s, peak/mean {peak / mean:.2f}, peak/trough {peak / trough:.1f}, "
            f"top 10 clients {100 * top:.1f} %")


def servegen(source):
    rows = list(csv.DictReader(io.StringIO(plain(source / "workload" / "servegen_m-large_client_rates.csv.zst"))))
    kept = [row for row in rows if 0 <= int(row["window_start_s"]) - SERVEGEN_FROM_S < SERVEGEN_SPAN_S]
    kept.sort(key=lambda row: (int(row["client"]), int(row["window_start_s"])))
    text = "client,window_start_s,rate_rps,cv,pattern,arg1,arg2\n"
    for row in kept:
        start = int(row["window_start_s"]) - SERVEGEN_FROM_S
        numbers = f"{float(row['rate_rps']):.5g},{float(row['cv']):.3g},{row['pattern']}"
        text += f"{row['client']},{start},{numbers},{float(row['arg1']):.3g},{float(row['arg2']):.3g}\n"
    print("servegen, whole:", swing(rows))
    print("servegen, cut:  ", swing(kept))
    write("servegen_rates.csv.zst", text)
    write("servegen_lengths.csv", plain(source / "workload" / "servegen_m-large_client_lengths.csv"))


def prices(source):
    best = {}
    for row in csv.DictReader(io.StringIO(plain(source / "price" / "open_model_prices_2026-07.csv"))):
        if row["model_family"] not in MODELS or row["kind"] != "host":
            continue
        host = HOSTS.get(row["provider"], row["provider"]).replace("_", "-")
        asked = [f"{float(row[column]):.6g}" if row[column] else "" for column in
                 ("input_usd_per_mtok", "cache_read_usd_per_mtok", "output_usd_per_mtok")]
        # A host that lists several variants counts once, with its cheapest; a row that names a cache price before one that doesn't.
        rank = (float(asked[0]) + float(asked[2]), not asked[1])
        key = (row["model_family"], host)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, [*asked, row["context_limit"]])
    text = "model,host,input_usd_per_mtok,cached_usd_per_mtok,output_usd_per_mtok,context_tokens\n"
    for (model, host), (_, row) in sorted(best.items()):
        text += ",".join([model, host, *row]) + "\n"
    write("prices.csv", text)


def regions(source):
    write("regions.csv", plain(source / "latency" / "azure_p95_rtt_ms_15_regions_2026-07.csv"))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    OUT.mkdir(exist_ok=True)
    for cut in (azure, mooncake, servegen, prices, regions):
        cut(pathlib.Path(sys.argv[1]))


main()
