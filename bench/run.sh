#!/usr/bin/env bash
# Builds and runs the benchmarks, installing what is missing. Arguments go to the benchmark program:
#
#   bench/run.sh --benchmark_filter=attention
#
# With --against and a commit first, every row is timed beside that commit's, in turns, and what is
# printed is one over the other:
#
#   bench/run.sh --against HEAD~1 --benchmark_filter=attention
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup.sh"

before=""
if [ "${1:-}" = --against ]; then
  before="$(git -C "$heed_root" rev-parse --verify "${2:?--against needs a commit}^{commit}")"
  shift 2
fi
heed_setup benchmark
heed_wish_mpi
heed_build bench -DHEED_BUILD_BENCHMARKS=ON -DCMAKE_BUILD_TYPE=Release
now="$heed_build_dir/bench/heed_bench"
if [ -z "$before" ]; then
  heed_say "running the benchmarks"
  "$now" "$@"
  if [ $# -eq 0 ] && [ -x "$heed_build_dir/bench/heed_ring_bench" ]; then
    heed_say "ring attention on 2 ranks beside 2 threads"
    for tokens in 8192 32768; do
      for direction in forward backward; do
        heed_mpirun 2 "$heed_build_dir/bench/heed_ring_bench" "$tokens" 5 "$direction"
      done
    done
  fi
  exit
fi

tree="$heed_root/build/against/$before"
if [ ! -e "$tree/bench/run.sh" ]; then
  mkdir -p "$tree"
  git -C "$heed_root" archive "$before" | tar -x -C "$tree"
fi
heed_root="$tree" heed_build bench -DHEED_BUILD_BENCHMARKS=ON -DCMAKE_BUILD_TYPE=Release
former="$heed_build_dir/bench/heed_bench"

# best <program> <row> [benchmark arguments]: the seconds of its best round.
best() {
  local program="$1" row="$2"
  shift 2
  "$program" "$@" --benchmark_format=json \
    --benchmark_filter="^$(printf '%s' "$row" | sed 's/[][().*+?^$|{}\\]/\\&/g')\$" 2>/dev/null |
    sed -n 's/.*"best_seconds": \([^,]*\),*/\1/p' | head -n 1
}

export HEED_BENCH_ROUNDS="${HEED_BENCH_ROUNDS:-10}"
heed_say "timing every row in turns with that of $before; above 1, this tree is the faster one"
printf '| row | before, µs | now, µs | before / now |\n| --- | --- | --- | --- |\n'
"$now" "$@" --benchmark_list_tests | while read -r row; do
  a="$(best "$former" "$row" "$@")" b="$(best "$now" "$row" "$@")"
  a2="$(best "$former" "$row" "$@")" b2="$(best "$now" "$row" "$@")"
  if [ -n "$a" ] && [ -n "$b" ]; then
    LC_ALL=C awk -v row="${row%/iterations:*}" -v a="$a" -v b="$b" -v a2="${a2:-$a}" -v b2="${b2:-$b}" 'BEGIN {
      if (a2 < a) a = a2
      if (b2 < b) b = b2
      printf "| %s | %.1f | %.1f | %.2f |\n", row, 1e6 * a, 1e6 * b, a / b
    }'
  fi
done
