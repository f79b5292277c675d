#!/usr/bin/env bash
# Times the pretrained models of the examples in heed, PyTorch and ONNX Runtime, on one thread and on
# two: see models.py. Installs what is missing into build/peers.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$root/.ci/setup.sh"
heed_setup benchmark nlohmann_json
models="${HEED_MODELS:-$root/build/examples/models}"
bash "$root/examples/models.sh" "$models"
peers="$root/build/peers"
mkdir -p "$peers"
heed_say "installing PyTorch and ONNX Runtime into $peers"
[ -e "$peers/venv/bin/python" ] || python3 -m venv "$peers/venv"
"$peers/venv/bin/pip" install --quiet --disable-pip-version-check numpy torch onnx onnxruntime onnxscript
heed_build bench -DHEED_BUILD_BENCHMARKS=ON -DCMAKE_BUILD_TYPE=Release
for threads in 1 2; do
  heed_say "threads: $threads; times of the others over heed's, best (median)"
  "$peers/venv/bin/python" -W ignore "$root/bench/peers/models.py" "$heed_build_dir/bench/heed_models" "$models" "$threads" 2>&1 | grep "^|"
done
