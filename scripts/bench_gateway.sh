#!/bin/sh
# Spillway's gateway beside nginx, LiteLLM and Portkey, against one mock upstream, taking turns in one run.
# Usage: scripts/bench_gateway.sh [SPILLWAY_BINARY [ARGUMENTS OF `spillway bench gateway`]]; without a binary, the one built
# as for handing on (scripts/dist.sh), made anew. Each gateway runs as its own quick start says, with a key where it has keys without a database.
# nginx and Node.js come from Debian's packages (installing wants root), LiteLLM from PyPI, Portkey from npm; the latter two are kept
# in $SPILLWAY_BENCH if that is set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
if [ $# -gt 0 ]; then
    binary=$1
    shift
else
    binary=$("$here/dist.sh")
fi
missing=
for pair in python3:python3-venv nginx:nginx-light node:nodejs npm:npm; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
    # A package's own service must not start: nothing but the measured ones may run.
    apt-get update -q
    # shellcheck disable=SC2086 # Names of packages, without spaces.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing
fi
if [ -n "${SPILLWAY_BENCH:-}" ]; then
    kept=$SPILLWAY_BENCH
else
    kept=$(mktemp -d)
    trap 'rm -rf "$kept"' EXIT
fi
mkdir -p "$kept/npm"
[ -x "$kept/venv/bin/python" ] || python3 -m venv "$kept/venv"
[ -x "$kept/venv/bin/litellm" ] || "$kept/venv/bin/pip" install --quiet --disable-pip-version-check 'litellm[proxy]>=1.80,<2'
[ -d "$kept/npm/node_modules/@portkey-ai/gateway" ] ||
    (cd "$kept/npm" && npm install --silent --no-fund --no-audit '@portkey-ai/gateway@^1.15')
"$kept/venv/bin/python" "$here/bench/beside.py" "$binary" "$kept" "$@"
