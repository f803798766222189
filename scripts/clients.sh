#!/bin/sh
# Real clients against a gateway, over its own backend and over the network: the official OpenAI clients for Python and Node, the
# official Anthropic client, LangChain's ChatOpenAI, LiteLLM. Only base URL and key differ from what they do elsewhere.
# Usage: scripts/clients.sh [SPILLWAY_BINARY]; without one, the release build, made if need be.
# The clients come from the package indexes of Python and Node, and are kept in $SPILLWAY_CLIENTS if that is set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")

for tool in python3 node npm; do
    command -v "$tool" >/dev/null || { echo "missing: $tool (Debian: apt-get install python3 python3-venv nodejs npm)" >&2; exit 1; }
done

if [ $# -gt 0 ]; then
    binary=$1
else
    (cd "$root" && cargo build --release --locked)
    binary=${CARGO_TARGET_DIR:-$root/target}/release/spillway
fi

if [ -n "${SPILLWAY_CLIENTS:-}" ]; then
    kept=$SPILLWAY_CLIENTS
else
    kept=$(mktemp -d)
    trap 'rm -rf "$kept"' EXIT
fi
mkdir -p "$kept"
[ -x "$kept/venv/bin/python" ] || python3 -m venv "$kept/venv"
"$kept/venv/bin/python" -c 'import openai, anthropic, langchain_openai, litellm' 2>/dev/null ||
    "$kept/venv/bin/pip" install --quiet --disable-pip-version-check 'openai>=2,<3' 'anthropic>=0.60,<1' 'langchain-openai>=1,<2' 'litellm>=1.70,<2'
[ -d "$kept/node_modules/openai" ] ||
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$kept" 'openai@^6'
"$kept/venv/bin/python" "$here/clients/run.py" "$binary" "$kept/node_modules"
