# shellcheck shell=bash
# Sourced by tests/run.sh, examples/run.sh and bench/run.sh; needs bash.
#
#   heed_setup [GTest] [benchmark] [nlohmann_json]   installs what is missing of make, CMake, a C++20
#                                    compiler, Eigen and the named libraries
#   heed_wish_mpi                    installs MPI where that can be done, and says so where it cannot
#   heed_mpirun <ranks> <program> <arguments>...   runs a program of MPI's
#   heed_build <what> <cmake arguments>...   builds <what> into $heed_build_dir; warnings are errors
#                                            for the tests, and for all that CI builds
#
# From the environment: CXX is the compiler (each has its own build directory), HEED_CMAKE_ARGS are
# further arguments for CMake, as in HEED_CMAKE_ARGS="-DHEED_NATIVE=OFF -DEigen3_ROOT=/opt/eigen".

heed_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
read -r -a heed_cmake_args <<<"${HEED_CMAKE_ARGS:-}" || true

heed_say() { echo "== heed: $*"; }

heed_has_make() { command -v make >/dev/null; }

heed_has_compiler() {
  echo '#include <concepts>' | ${CXX:-c++} -std=c++20 -x c++ -fsyntax-only - 2>/dev/null
}

# 3.23 or newer: the older of the two versions is 3.23.
heed_has_cmake() {
  command -v cmake >/dev/null &&
    [ "$( (echo 3.23; cmake --version | sed -n 's/^cmake version //p') | sort -V | head -n 1)" = 3.23 ]
}

# Whether CMake finds package $1 of version $2 or newer.
heed_has_package() {
  local probe missing=0
  probe="$(mktemp -d)"
  cat >"$probe/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.23)
project(probe LANGUAGES CXX)
find_package($1 CONFIG REQUIRED)
if($1_VERSION VERSION_LESS $2)
  message(FATAL_ERROR "too old")
endif()
EOF
  cmake -S "$probe" -B "$probe/build" ${heed_cmake_args[@]+"${heed_cmake_args[@]}"} \
    >/dev/null 2>&1 || missing=1
  rm -rf "$probe"
  return "$missing"
}

heed_has_eigen() { heed_has_package Eigen3 3.4; }
heed_has_gtest() { heed_has_package GTest 1.10; }
heed_has_benchmark() { heed_has_package benchmark 1.5; }
heed_has_nlohmann_json() { heed_has_package nlohmann_json 3.9; }

# heed_install <apt> <dnf> <brew>: installs one package, which each of the three names its own way.
heed_install() {
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then sudo="sudo"; fi
  if command -v apt-get >/dev/null; then
    if [ -z "${heed_updated:-}" ]; then
      heed_say "updating the package lists"
      $sudo apt-get -qq update </dev/null || heed_say "that failed; trying with the lists at hand"
      heed_updated=1
    fi
    heed_say "installing $1 with apt-get"
    $sudo env DEBIAN_FRONTEND=noninteractive \
      apt-get -qq -y install --no-install-recommends "$1" </dev/null >/dev/null
  elif command -v dnf >/dev/null; then
    heed_say "installing $2 with dnf"
    $sudo dnf -q -y install "$2" </dev/null
  elif command -v brew >/dev/null; then
    heed_say "installing $3 with brew"
    brew install "$3" </dev/null
  else
    heed_say "$3 is missing, and so are apt-get, dnf and brew to install it with" >&2
    exit 1
  fi
}

# heed_need <thing> <check> <apt> <dnf> <brew>: installs unless the check passes, and checks again.
heed_need() {
  if $2; then return; fi
  heed_install "$3" "$4" "$5"
  if ! $2; then
    heed_say "$1 is needed, and the installed package is not it" >&2
    exit 1
  fi
}

# What needs MPI is left out without it.
heed_has_mpi() { command -v mpicxx >/dev/null && command -v mpiexec >/dev/null; }
heed_wish_mpi() {
  if heed_has_mpi; then return; fi
  (heed_install libopenmpi-dev openmpi-devel open-mpi) || true
  if ! heed_has_mpi; then heed_say "MPI could not be installed; what needs it is left out"; fi
}

# heed_mpirun <ranks> <program> <arguments>... Open MPI is told that ranks may share cores and are not
# bound to them, and that root may start them, if it is root; others do not look at these variables.
heed_mpirun() {
  local ranks="$1"
  shift
  (
    export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
    export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
    if [ "$(id -u)" -eq 0 ]; then
      export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
      export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    mpiexec -n "$ranks" "$@"
  )
}

heed_setup() {
  local library
  heed_need make heed_has_make make make make
  case "${CXX:-}" in
    *clang*) heed_need "$CXX with C++20" heed_has_compiler clang clang llvm ;;
    *) heed_need "a compiler (${CXX:-c++}) with C++20" heed_has_compiler g++ gcc-c++ gcc ;;
  esac
  heed_need "CMake 3.23" heed_has_cmake cmake cmake cmake
  heed_need "Eigen 3.4" heed_has_eigen libeigen3-dev eigen3-devel eigen
  for library in "$@"; do
    case "$library" in
      GTest) heed_need GoogleTest heed_has_gtest libgtest-dev gtest-devel googletest ;;
      benchmark)
        heed_need "Google Benchmark" heed_has_benchmark \
          libbenchmark-dev google-benchmark-devel google-benchmark
        ;;
      nlohmann_json)
        heed_need "nlohmann_json 3.9" heed_has_nlohmann_json nlohmann-json3-dev json-devel nlohmann-json
        ;;
    esac
  done
}

heed_build() {
  local what="$1" jobs strict=OFF
  shift
  # The new warnings of a newer compiler must not stop someone who only tries the examples.
  if [ "$what" = tests ] || [ -n "${CI:-}" ]; then strict=ON; fi
  jobs="$(getconf _NPROCESSORS_ONLN)"
  heed_build_dir="$heed_root/build/$what${CXX:+-$(basename "${CXX%% *}")}"
  heed_say "building the $what in $heed_build_dir with $jobs jobs"
  cmake -S "$heed_root" -B "$heed_build_dir" -DHEED_BUILD_TESTS=OFF -DHEED_BUILD_BENCHMARKS=OFF \
    -DHEED_BUILD_EXAMPLES=OFF -DHEED_WARNINGS_AS_ERRORS="$strict" "$@" \
    ${heed_cmake_args[@]+"${heed_cmake_args[@]}"}
  cmake --build "$heed_build_dir" --parallel "$jobs"
}
