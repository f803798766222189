#!/bin/sh
# A real inference server behind Spillway: llama.cpp with the guide model, as a node's own backend and over the network. Every event
# that a client gets is compared with what the server itself says to the same request.
# Usage: scripts/upstreams.sh [SPILLWAY_BINARY [FOLDER]]; without a binary, the release build, made if need be. With a FOLDER, the
# server's answers are recorded there, for node/tests/recorded.
# The server is `llama-cpp-python` from PyPI, whose C++ is compiled on this machine: ten minutes and more on one core, so this is no
# part of CI. It is kept in $SPILLWAY_UPSTREAMS if that is set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
for tool in python3 c++; do
    command -v "$tool" >/dev/null || { echo "missing: $tool (Debian: apt-get install build-essential python3 python3-venv)" >&2; exit 1; }
done

if [ $# -gt 0 ]; then
    binary=$1
else
    (cd "$root" && cargo build --release --locked)
    binary=${CARGO_TARGET_DIR:-$root/target}/release/spillway
fi
if [ -n "${SPILLWAY_UPSTREAMS:-}" ]; then
    kept=$SPILLWAY_UPSTREAMS
else
    kept=$(mktemp -d)
    trap 'rm -rf "$kept"' EXIT
fi
mkdir -p "$kept"
[ -x "$kept/venv/bin/python" ] || python3 -m venv "$kept/venv"
# Without its part for images, which takes longest to compile.
"$kept/venv/bin/python" -c 'import llama_cpp.server.app' 2>/dev/null ||
    CMAKE_ARGS="${CMAKE_ARGS:-} -DLLAVA_BUILD=OFF" "$kept/venv/bin/pip" install --quiet --disable-pip-version-check 'llama-cpp-python[server]>=0.3.36,<0.4'
"$kept/venv/bin/python" "$here/upstreams/run.py" "$binary" "$root/node/engine/models/guide.gguf" ${2:+"$2"}
