#!/usr/bin/env bash
# Checks that tests/matrix/main.cpp, which includes every header, compiles without a warning, with
# every compiler there is, C++20 and C++23, the baseline processor and this one's, with and without
# exceptions, and every Eigen that is named; then that it runs at each level of optimisation. Half an
# hour for three compilers and two Eigens on two cores. Nothing is installed.
#
#   EIGENS="/usr/include/eigen3 /opt/eigen5/include/eigen3" tests/matrix.sh [compiler...]
#
# From the environment: LEVELS are the levels of optimisation, LAUNCHER is put in front of the
# compiler, as in LAUNCHER=ccache.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup.sh"

read -r -a eigens <<<"${EIGENS:-/usr/include/eigen3}"
read -r -a levels <<<"${LEVELS--O0 -O1 -O2 -O3}"
compilers=("$@")
for name in g++-{16..11} clang++-{25..14}; do
  if [ $# -eq 0 ] && command -v "$name" >/dev/null; then compilers+=("$name"); fi
done
warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast
  -Wcast-align -Wcast-qual -Wextra-semi -Wnon-virtual-dtor -Woverloaded-virtual -Wundef -Werror)
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

failed=0
try() {  # try <what> <command>...
  if "${@:2}" >"$work/log" 2>&1; then
    heed_say "$1: passes"
  else
    heed_say "$1: FAILS"
    grep -m 5 -E "error|warning" "$work/log" || tail -n 5 "$work/log"
    failed=$((failed + 1))
  fi
}
build_and_run() { "$@" -o "$work/program" && (cd "$work" && ./program); }

for cxx in "${compilers[@]}"; do
  if "$cxx" --version | grep -q clang; then
    own=(-Wno-unknown-warning-option -Wno-invalid-feature-combination)  # of -march=native
  else
    own=(-Wno-uninitialized -Wno-maybe-uninitialized)  # of avx512fintrin.h, before version 13
  fi
  for eigen in "${eigens[@]}"; do
    compile=(${LAUNCHER:-} "$cxx" "${warnings[@]}" "${own[@]}" -I "$heed_root/include" -isystem "$eigen"
      "$heed_root/tests/matrix/main.cpp")
    for standard in c++20 c++2b; do
      for machine in x86-64 native; do
        try "$cxx, $eigen, $standard, $machine" \
          "${compile[@]}" -std="$standard" -march="$machine" -fsyntax-only
      done
    done
    try "$cxx, $eigen, without exceptions" "${compile[@]}" -std=c++20 -fno-exceptions -fsyntax-only
    for level in "${levels[@]}"; do
      try "$cxx, $eigen, $level, run" build_and_run "${compile[@]}" -std=c++20 -march=native "$level"
    done
  done
done
echo "$failed failed"
[ "$failed" -eq 0 ]
