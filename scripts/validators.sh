#!/bin/sh
# The validators' campaigns in their long form: real processes on loopback, killed and cut off on purpose.
# One JSON line for each campaign; the first that fails ends the script with its reason and where the files are.
#
#   scripts/validators.sh [KILL_CYCLES] [LIES_OF_EACH_KIND] [PARTITIONS] [SEED]
#
# Defaults: 500 cycles, 10 lies, 5 partitions, seed 1. SPILLWAY_PROFILE=dev uses the development build.
set -eu
cd "$(dirname "$0")/.."
cycles=${1:-500}
lies=${2:-10}
partitions=${3:-5}
seed=${4:-1}
profile=${SPILLWAY_PROFILE:-release}
folder=$profile
[ "$profile" = dev ] && folder=debug

cargo build --quiet --profile "$profile" -p spillway-bft --examples
target=${CARGO_TARGET_DIR:-target}
campaign=$target/$folder/examples/campaign

"$campaign" one_down 4
"$campaign" lies "$lies"
"$campaign" twins
"$campaign" election
"$campaign" partition "$partitions"
"$campaign" slow_clock
"$campaign" kill_cycles "$cycles" "$seed"
