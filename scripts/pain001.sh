#!/usr/bin/env bash
# Writes payment files with `spillway ledger payouts export` and validates each against the ISO 20022 schema of
# pain.001.001.09, with two validators: lxml (libxml2) and xmlschema. The schema comes with the PyPI package sepaxml.
#
#   scripts/pain001.sh [SPILLWAY-BINARY]
#
# Needs python3 with venv, and PyPI for the first run; the virtual environment is kept in target/pain001-venv.
set -euo pipefail
cd "$(dirname "$0")/.."
spillway=${1:-target/debug/spillway}
if [ ! -x "$spillway" ]; then
    cargo build -p spillway-node
fi
venv=${PAIN001_VENV:-target/pain001-venv}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" --quiet install 'sepaxml>=2.7,<3' 'lxml>=5' 'xmlschema>=4,<5'
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$venv/bin/python" scripts/pain001.py "$spillway" "$work"
