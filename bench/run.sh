#!/usr/bin/env bash
# Builds and runs the benchmarks, installing what is missing. Arguments go to the benchmark program:
# bench/run.sh --benchmark_filter=attention.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup.sh"

heed_setup benchmark
heed_build bench -DHEED_BUILD_BENCHMARKS=ON -DCMAKE_BUILD_TYPE=Release
heed_say "running the benchmarks"
"$heed_build_dir/bench/heed_bench" "$@"
