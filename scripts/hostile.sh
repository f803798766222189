#!/bin/sh
# Hostile requests against a gateway: what no client would send, as bytes on a socket, and requests generated from its own OpenAPI
# description. Nothing of it may end in a fault of the node, hold a connection for ever, or leave a secret in its files.
# Usage: scripts/hostile.sh [SPILLWAY_BINARY [REQUESTS_PER_OPERATION [ROUNDS]]]; without a binary, the release build, made if need be.
# 50 generated requests per operation and 3 rounds of raw ones by default; 10000 is the campaign. 0 leaves the generated ones out.
# The generator, `schemathesis`, comes from PyPI, and is kept in $SPILLWAY_HOSTILE if that is set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
command -v python3 >/dev/null || { echo "missing: python3 (Debian: apt-get install python3 python3-venv)" >&2; exit 1; }

if [ $# -gt 0 ]; then
    binary=$1
else
    (cd "$root" && cargo build --release --locked)
    binary=${CARGO_TARGET_DIR:-$root/target}/release/spillway
fi
requests=${2:-50}

python3 "$here/hostile/raw.py" "$binary" "${3:-3}"

[ "$requests" -gt 0 ] || exit 0
if [ -n "${SPILLWAY_HOSTILE:-}" ]; then
    kept=$SPILLWAY_HOSTILE
else
    kept=$(mktemp -d)
    trap 'rm -rf "$kept"' EXIT
fi
mkdir -p "$kept"
[ -x "$kept/venv/bin/python" ] || python3 -m venv "$kept/venv"
"$kept/venv/bin/python" -c 'import schemathesis' 2>/dev/null ||
    "$kept/venv/bin/pip" install --quiet --disable-pip-version-check 'schemathesis>=4.32,<5'
"$kept/venv/bin/python" "$here/hostile/generated.py" "$binary" "$requests"
