#!/bin/sh
# Soak: a gateway at half of the rate that saturates it, with clients that come, leave in mid-stream and stall. It watches latency,
# memory, descriptors and lost answers, and verifies books and budgets at the end.
# Usage: scripts/soak.sh [MINUTES [SPILLWAY_BINARY [FOLDER]]]: 2 minutes by default; without a binary, the release build, made if
# need be. FOLDER gets soak.jsonl and soak.svg; without one they go to a temporary folder that is kept.
# SPILLWAY_SOAK_RATE, in requests a second, is kept up in place of half of what saturates, which a busy machine cannot tell.
# The upstream is a test double in the load generator; nodes, market and books are real.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
command -v python3 >/dev/null || { echo "missing: python3 (Debian: apt-get install python3)" >&2; exit 1; }

if [ $# -gt 1 ]; then
    binary=$2
else
    (cd "$root" && cargo build --release --locked)
    binary=${CARGO_TARGET_DIR:-$root/target}/release/spillway
fi
(cd "$root" && cargo build --release --locked -p spillway-testnet --example soak_load)
load=${CARGO_TARGET_DIR:-$root/target}/release/examples/soak_load
python3 "$here/soak/soak.py" "$binary" "$load" "${1:-2}" "${3:-$(mktemp -d -t spillway-soak-XXXXXX)}"
