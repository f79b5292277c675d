#!/usr/bin/env bash
# Builds tests for 64-bit ARM (NEON) with a cross compiler and runs them in QEMU, installing what is
# missing; several minutes. Arguments are the names of tests in place of those that say most:
# tests/aarch64.sh lanes_test math_test.
#
# From the environment: CXX is the cross compiler, as in CXX="clang++ --target=aarch64-linux-gnu";
# HEED_FLAGS are further flags for it, as in HEED_FLAGS="-O3 -mcpu=neoverse-v1".
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup.sh"

has_cross_compiler() { command -v aarch64-linux-gnu-g++ >/dev/null; }
has_qemu() { command -v qemu-aarch64 >/dev/null; }
has_sources_of_gtest() { [ -f /usr/src/googletest/googletest/src/gtest-all.cc ]; }
has_headers_of_eigen() { [ -d /usr/include/eigen3/Eigen ]; }
has_headers_of_json() { [ -f /usr/include/nlohmann/json.hpp ]; }

needs() { heed_need "$1" "$2" "$3" "$3" "$3"; }
needs "a compiler for aarch64" has_cross_compiler g++-aarch64-linux-gnu
needs QEMU has_qemu qemu-user
needs "GoogleTest's sources" has_sources_of_gtest libgtest-dev
needs Eigen has_headers_of_eigen libeigen3-dev
needs nlohmann_json has_headers_of_json nlohmann-json3-dev

tests=("$@")
if [ $# -eq 0 ]; then
  tests=(lanes_test math_test dual_test kernel_test kernel_rows_test tile_test matmul_test softmax_test
    activation_test norm_test rotary_test mlp_test mixed_weights_test attention_test
    attention_decode_test attention_backward_test backward_hidden_test accuracy_test cache_test
    quantised_cache_test)
fi

read -r -a compiler <<<"${CXX:-aarch64-linux-gnu-g++}"
read -r -a more <<<"${HEED_FLAGS:-}"
build="$heed_root/build/aarch64-$(basename "${compiler[0]}")"
# The headers of Eigen and nlohmann_json alone, not those of this machine's system beside them.
mkdir -p "$build/include"
ln -sfn /usr/include/eigen3 "$build/include/eigen3"
ln -sfn /usr/include/nlohmann "$build/include/nlohmann"
google=/usr/src/googletest/googletest
flags=(-std=c++20 -O1 -UNDEBUG -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow
  -Wold-style-cast -Wno-psabi -Werror -I "$heed_root/include" -isystem "$build/include/eigen3"
  -isystem "$build/include" -isystem "$google/include" ${more[@]+"${more[@]}"})

if [ ! -f "$build/gtest.o" ]; then
  heed_say "building GoogleTest for aarch64"
  "${compiler[@]}" -std=c++20 -O1 -w -I "$google" -I "$google/include" -r \
    "$google/src/gtest-all.cc" "$google/src/gtest_main.cc" -nostdlib -o "$build/gtest.o"
fi

failed=()
for name in "${tests[@]}"; do
  heed_say "$name"
  if ! "${compiler[@]}" "${flags[@]}" "$heed_root/tests/$name.cpp" "$build/gtest.o" -pthread \
    -o "$build/$name" || ! qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/$name" --gtest_brief=1; then
    failed+=("$name")
  fi
done
if [ ${#failed[@]} -gt 0 ]; then
  heed_say "failed: ${failed[*]}" >&2
  exit 1
fi
heed_say "all pass"
