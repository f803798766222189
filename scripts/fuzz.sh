#!/usr/bin/env bash
# Feeds hostile bytes to every decoder of the ledger: scripts/fuzz.sh [SECONDS] [TARGET...], 10 seconds each by default.
# One line for each target; fails if any input broke a law (ledger/fuzz/src/laws.rs) or took more memory than its limit.
# The bytes that did are kept, and are named. FUZZ_AT_ONCE=N runs N targets at a time.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "usage: scripts/fuzz.sh [SECONDS] [TARGET...]"; exit 2; }
shift || true
all=(voucher receipt entry vote block proof genesis record stored)
targets=("$@")
((${#targets[@]})) || targets=("${all[@]}")
for target in "${targets[@]}"; do
  [ -f "ledger/fuzz/fuzz_targets/$target.rs" ] || { echo "no target $target; there are: ${all[*]}"; exit 2; }
done

cache=${XDG_CACHE_HOME:-$HOME/.cache}/spillway-ci
built=${FUZZ_TARGET_DIR:-$cache/fuzz-target}
# What a run finds worth keeping is where the next one begins; the seeds in the repository are never written to.
work=${FUZZ_WORK:-$cache/fuzz}
mkdir -p "$work"

if ! command -v cargo-fuzz >/dev/null; then
  [ -x "$cache/tools/bin/cargo-fuzz" ] || CARGO_TARGET_DIR="$cache/deny" cargo install --debug --locked --quiet cargo-fuzz --root "$cache/tools"
  export PATH="$cache/tools/bin:$PATH"
fi

# Coverage counters need no nightly compiler; the sanitizers would, and what they look for only unsafe code can do.
for target in "${targets[@]}"; do
  cargo fuzz build --sanitizer none --fuzz-dir ledger/fuzz --target-dir "$built" "$target" 2>"$work/build.log" ||
    { tail -40 "$work/build.log"; exit 1; }
done
host=$(rustc -vV | sed -n 's/^host: //p')

fuzz() {
  local target=$1 log=$work/$1.log length=4096 code=0
  case $target in
    voucher) length=512 ;;
    receipt) length=2048 ;;
    vote | stored) length=8192 ;;
    block | proof | genesis | record) length=65536 ;;
  esac
  mkdir -p "$work/corpus/$target" "$work/found/$target"
  "$built/$host/release/$target" "$work/corpus/$target" "ledger/fuzz/seeds/$target" \
    -max_total_time="$seconds" -max_len="$length" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="$work/found/$target/" >"$log" 2>&1 || code=$?
  local runs peak crashes
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  peak=$(sed -n 's/^peak \([0-9]*\) of .*/\1/p' "$log" | tail -1)
  crashes=$((code == 0 ? 0 : 1))
  echo "$target: ${runs:-unknown} runs, $crashes crashes${peak:+, at most $peak bytes allocated at once by a decoder}"
  if ((code)); then
    tail -25 "$log"
    grep -o 'Test unit written to .*' "$log" || true
  fi
  return "$code"
}

failed=0
running=()
for target in "${targets[@]}"; do
  while ((${#running[@]} >= ${FUZZ_AT_ONCE:-1})); do
    wait "${running[0]}" || failed=1
    running=("${running[@]:1}")
  done
  fuzz "$target" &
  running+=($!)
done
for one in "${running[@]}"; do wait "$one" || failed=1; done
exit "$failed"
