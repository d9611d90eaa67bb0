#!/bin/sh
# Hundreds of seeds of the test in chaos.rs: `host/tests/ec2/chaos.sh 500`, or from a first one on `... 500 1000`; one of them
# again with LABHOST_CHAOS=17. About one and a half seconds for each on two cores.
set -eu
cd "$(dirname "$0")/../../.."
count=${1:-300}
first=${2:-0}
LABHOST_CHAOS="${LABHOST_CHAOS:-$first..$((first + count))}" exec cargo test -p labhost --features ec2 --locked --test ec2 chaos -- --nocapture
