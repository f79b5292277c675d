#!/usr/bin/env bash
# Builds and runs every test, installing what is missing. Arguments go to ctest: tests/run.sh -R mask.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup.sh"

heed_setup GTest nlohmann_json
heed_wish_mpi
heed_build tests -DHEED_BUILD_TESTS=ON
heed_say "running the tests"
ctest --test-dir "$heed_build_dir" --output-on-failure --no-tests=error \
  --parallel "$(getconf _NPROCESSORS_ONLN)" "$@"
