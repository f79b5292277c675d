#!/usr/bin/env bash
# Builds and runs every example in order, installing what is missing. The pictures they draw go to
# build/examples/pictures, or to the directory given: examples/run.sh examples/pictures refreshes those
# that examples/README.md shows.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup.sh"

pictures="${1:-$heed_root/build/examples/pictures}"
mkdir -p "$pictures"
pictures="$(cd "$pictures" && pwd)"

heed_setup nlohmann_json
heed_wish_mpi
heed_say "fetching pretrained models for the examples 11 to 13"
bash "$heed_root/examples/models.sh"
heed_build examples -DHEED_BUILD_EXAMPLES=ON
cd "$heed_root/examples"
for source in [0-9]*.cpp; do
  heed_say "$source"
  program="$heed_build_dir/examples/${source%.cpp}"
  if [ "$source" != 14_long_sequence.cpp ]; then
    "$program" "$pictures"
  elif heed_has_mpi && [ -x "$program" ]; then
    heed_mpirun 2 "$program" "$pictures"
  else
    heed_say "skipped, for want of MPI"
  fi
done
heed_say "the pictures are in $pictures"
