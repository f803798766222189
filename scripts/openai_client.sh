#!/bin/sh
# The official OpenAI client against `spillway demo --keep`: only base URL and key differ from what it does elsewhere.
# Usage: scripts/openai_client.sh [SPILLWAY_BINARY]; without one, the release build, made if need be.
# The client comes from the package index into a virtual environment, kept in $SPILLWAY_VENV if that is set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
work=$(mktemp -d)
demo=

finish() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$demo" ] && kill -0 "$demo" 2>/dev/null; then
        kill -TERM "$demo"
        wait "$demo" || { echo "the demo did not stop cleanly" >&2; [ "$code" -ne 0 ] || code=1; }
    fi
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ $# -gt 0 ]; then
    binary=$1
else
    (cd "$root" && cargo build --release --locked)
    binary=${CARGO_TARGET_DIR:-$root/target}/release/spillway
fi

venv=${SPILLWAY_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import openai' 2>/dev/null || "$venv/bin/pip" install --quiet --disable-pip-version-check 'openai>=1.40'

"$binary" demo --keep --json >"$work/summary.json" 2>"$work/demo.log" &
demo=$!
waited=0
while [ ! -s "$work/summary.json" ]; do
    if ! kill -0 "$demo" 2>/dev/null || [ "$waited" -ge 180 ]; then
        echo "the demo did not come up:" >&2
        cat "$work/demo.log" >&2
        exit 1
    fi
    waited=$((waited + 1))
    sleep 1
done
"$venv/bin/python" "$here/openai_client.py" "$work/summary.json" "$binary"
