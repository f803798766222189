#!/bin/sh
# Builds `spillway` as it is handed on: optimised as one whole, by a profile of itself at work. Two builds and a run between them.
# Usage: scripts/dist.sh. Prints the program's place. Wants an `llvm-profdata` no older than the compiler's LLVM.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
cd "$root"
base=${CARGO_TARGET_DIR:-$root/target}
case $base in /*) ;; *) base=$root/$base ;; esac
work=$base/guided
mkdir -p "$work"
host=$(rustc -vV | sed -n 's/^host: //p')

wanted=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
profdata=
for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" llvm-profdata "llvm-profdata-$wanted"; do
    version=$("$tool" --version 2>/dev/null | sed -n 's/.*LLVM version \([0-9]*\).*/\1/p')
    if [ "${version:-0}" -ge "$wanted" ]; then
        profdata=$tool
        break
    fi
done
if [ -z "$profdata" ]; then
    echo "missing: llvm-profdata $wanted or later (rustup component add llvm-tools, or Debian: apt-get install llvm-$wanted)" >&2
    exit 1
fi

# Builds into a folder: with these flags everything, with those behind them the program alone.
build() {
    folder=$1 flags=$2
    shift 2
    # A target is named, so that the flags are for the program and not for build scripts. Cargo mixes a profile's settings into the
    # names of functions, by which the profile is found again: both builds are of the same profile.
    RUSTFLAGS=$flags CARGO_TARGET_DIR=$work/$folder \
        cargo rustc --locked --profile dist --target "$host" -p spillway-node --bin spillway -- "$@"
    binary=$work/$folder/$host/dist/spillway
}

build instrumented "-Cprofile-generate=$work/raw"
rm -rf "$work/raw"
mkdir -p "$work/raw/gateway" "$work/raw/others"
# Of the benchmark, only what the measured node does counts, not what the clients do.
LLVM_PROFILE_FILE=$work/raw/gateway/%p.profraw "$binary" bench gateway --rounds 1 --period 2000 >&2 &
clients=$!
wait "$clients"
rm "$work/raw/gateway/$clients.profraw"
export LLVM_PROFILE_FILE="$work/raw/others/%p.profraw"
"$binary" demo >&2
"$binary" sim run burst --seed 7 >&2

# Functions that never ran are kept in the profile, as such. The flags name its file: another profile is another build.
"$profdata" merge -o "$work/merged" "$work/raw/gateway" "$work/raw/others"
profile=$work/$(cksum <"$work/merged" | cut -d ' ' -f 1).profdata
mv "$work/merged" "$profile"

# What a gateway needs comes first, by how often it ran.
"$profdata" merge -o "$work/gateway.profdata" "$work/raw/gateway"
"$profdata" show --all-functions --counts "$work/gateway.profdata" | awk '
    /^  [^ ].*:$/ { name = substr($0, 3, length($0) - 3); sub(/.*;/, "", name) }
    /^    Block counts: / {
        gsub(/.*\[|\].*/, ""); most = 0
        for (i = split($0, counts, ", "); i > 0; i--) if (counts[i] + 0 > most) most = counts[i] + 0
        if (most > 0) printf "%d %s\n", most, name
    }' | sort -k1,1nr -k2,2 | cut -d ' ' -f 2 >"$work/order"

# What never ran comes to lie together, so that little of it is in memory; nor is most of the list of addresses that the loader sets,
# which is a hundredth as long when packed (glibc 2.36 and later read it so).
build guided "-Cprofile-use=$profile -Cllvm-args=-profile-summary-cold-count=0" \
    -Clink-arg=-Wl,-z,keep-text-section-prefix -Clink-arg=-Wl,-z,pack-relative-relocs \
    "-Clink-arg=-Wl,--symbol-ordering-file=$work/order" -Clink-arg=-Wl,--no-warn-symbol-ordering
echo "$binary"
