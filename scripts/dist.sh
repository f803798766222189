#!/bin/sh
# Builds `spillway` for handing on: profile `dist`, and the compiler is told which paths are hot by a run of the very same program.
# Usage: scripts/dist.sh; the last line names the program. Takes two builds; nothing but the crates' sources is fetched.
# What runs to learn: `spillway bench gateway` (the gateway under load) and `spillway demo` (the market and the ledger), on loopback.
# Wants an llvm-profdata that reads this compiler's profiles: of rustup's `llvm-tools`, or Debian's `llvm-19` and newer.
set -eu
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-$PWD/target}
learned=$target/learned
for profdata in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" llvm-profdata-22 llvm-profdata-21 llvm-profdata-20 llvm-profdata-19; do
    if command -v "$profdata" >/dev/null; then break; fi
done
if ! command -v "$profdata" >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends llvm-19
fi
rm -rf "$learned"
mkdir -p "$learned"

# With `--target` the flags are not for build scripts. Functions are named by the unit they are in: as many units as below.
# What counts is taken before crates are linked, so the first build needs no optimisation over all of them.
CARGO_PROFILE_DIST_LTO=off RUSTFLAGS="-Cprofile-generate=$learned" \
    cargo build --locked --profile dist --target "$host" --target-dir "$target/counting"
counting=$target/counting/$host/dist/spillway

# The measuring program is the same binary, and its own paths are not the node's: its counts are left out.
(exec env LLVM_PROFILE_FILE="$learned/bench-%p.profraw" "$counting" bench gateway --rounds 1 --period 3000 >&2) &
bench=$!
wait "$bench"
rm -f "$learned/bench-$bench.profraw"
LLVM_PROFILE_FILE="$learned/demo-%p.profraw" "$counting" demo >&2
"$profdata" merge -o "$learned/all.profdata" "$learned"/*.profraw

# What did not run at all lies by itself, so that it need not be in memory; what ran once, at a start, is not counted to it.
RUSTFLAGS="-Cprofile-use=$learned/all.profdata -Cllvm-args=-profile-summary-cold-count=0 -Clink-arg=-Wl,-z,keep-text-section-prefix" \
    cargo build --locked --profile dist --target "$host" --target-dir "$target"
echo "$target/$host/dist/spillway"
