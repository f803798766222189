#!/bin/sh
# The second implementation of the ledger's formats over the frozen vectors: no code of ours but the script itself.
# Usage: scripts/formats.sh [--every] [--verdicts FILE]
# --every changes every byte of each signed document to each of the others (minutes). --verdicts compares with what the
# ledger says of other bytes: see ledger/fuzz/examples/verdicts.rs.
# Its two packages come from the package index into a virtual environment, kept in $SPILLWAY_VENV if that is set.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

venv=${SPILLWAY_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import blake3, cryptography' 2>/dev/null ||
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'cryptography>=42' 'blake3>=0.4'
"$venv/bin/python" "$root/docs/formats/formats.py" "$root/ledger/src/tests/vectors.txt" "$@"
