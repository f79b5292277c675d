#!/usr/bin/env bash
# Builds and runs tests under a tool that watches memory or threads, installing what is missing:
#
#   tests/sanitize.sh address     addresses and undefined behaviour (about half an hour on two cores)
#   tests/sanitize.sh thread      races between threads
#   tests/sanitize.sh valgrind    uninitialised memory, and addresses again
#
# Further arguments are names of tests in place of all that have threads (thread), of those that say
# most (valgrind) or of all (address): tests/sanitize.sh address cache_test mask_test.
#
# From the environment: CXX is the compiler. The default is the newest clang, which
# compiles the checks three times as fast as g++ does and finds more. LAUNCHER is put in front of the
# compiler, as in LAUNCHER=ccache.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup.sh"

what="${1:-}"
shift || true
has_valgrind() { command -v valgrind >/dev/null; }
find_clang() {
  local name
  for name in clang++-{25..19} clang++ clang++-{18..14}; do
    # Its sanitizers come in a package of their own.
    if echo 'int main() {}' | "$name" -fsanitize=address -x c++ - -o /dev/null 2>/dev/null; then
      echo "$name"
      return
    fi
  done
}

tests=("$@")
# Brief tests run for so short a time that not optimising them costs nothing.
flags=(-g1 -fno-omit-frame-pointer)
case "$what" in
  address)
    flags+=("-fsanitize=address,undefined" -fno-sanitize-recover=all -march=native)
    run=(env ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1)
    level=-O0
    ;;
  thread)
    flags+=(-fsanitize=thread -march=native)
    run=(env TSAN_OPTIONS=halt_on_error=1)
    level=-O1
    if [ $# -eq 0 ]; then
      mapfile -t tests < <(cd "$heed_root/tests" && grep -l ThreadPool -- *_test.cpp |
        grep -v pretrained_test | sed "s/\.cpp$//")
    fi
    ;;
  valgrind)
    heed_need valgrind has_valgrind valgrind valgrind valgrind
    flags+=(-march=x86-64-v3)  # valgrind knows no AVX-512
    run=(valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite
      --fair-sched=yes)
    level=-O1
    if [ $# -eq 0 ]; then
      tests=(view_lifetime_test empty_test safetensors_test cache_test paged_cache_test
        embedding_test mlp_test norm_test linear_test tile_test concurrency_test)
    fi
    ;;
  *)
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
if [ ${#tests[@]} -eq 0 ]; then
  mapfile -t tests < <(cd "$heed_root/tests" && printf "%s\n" *_test.cpp | sed "s/\.cpp$//")
fi

heed_setup GTest nlohmann_json
CXX="${CXX:-$(find_clang)}"
CXX="${CXX:-c++}"
build="$heed_root/build/sanitize-$what-$(basename "$CXX")"
mkdir -p "$build"
eigen="${EIGEN:-/usr/include/eigen3}"
flags+=(-std=c++20 "$level" -UNDEBUG -w -I "$heed_root/include" -isystem "$eigen")

# One test: built anew where it is older than a source or a header, then run.
one() {
  local name="$1" program="$build/$1"
  if [ ! -x "$program" ] || [ -n "$(find "$heed_root/include" "$heed_root/tests" -name '*.[hc]pp' \
    -newer "$program" -print -quit)" ]; then
    ${LAUNCHER:-} "$CXX" "${flags[@]}" "$heed_root/tests/$name.cpp" -lgtest_main -lgtest -pthread -o "$program" \
      >"$program.log" 2>&1 || return 1
  fi
  (cd "$heed_root/tests" && "${run[@]}" "$program" --gtest_brief=1) >"$program.log" 2>&1
}

failed=()
jobs="$(getconf _NPROCESSORS_ONLN)"
next() {  # waits for one test and says how it went
  local name status=0
  wait -n -p pid || status=$?
  name="${names[$pid]}"
  unset "names[$pid]"
  if [ "$status" -eq 0 ]; then
    heed_say "$what: $name is clean"
  else
    heed_say "$what: $name FAILED, see $build/$name.log"
    tail -n 40 "$build/$name.log"
    failed+=("$name")
  fi
}
declare -A names=()
for name in "${tests[@]}"; do
  if [ "${#names[@]}" -ge "$jobs" ]; then next; fi
  one "$name" &
  names[$!]="$name"
done
while [ "${#names[@]}" -gt 0 ]; do next; done
echo "$((${#tests[@]} - ${#failed[@]})) passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ]
