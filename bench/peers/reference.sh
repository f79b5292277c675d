#!/usr/bin/env bash
# Writes what the pretrained models give by other programs, for the tests to compare with, beside the
# models: see reference.py. The directory is build/examples/models, or the one given.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
models="${1:-$root/build/examples/models}"
bash "$root/examples/models.sh" "$models"
[ ! -s "$models/reference.safetensors" ] || exit 0
venv="$models/venv"
[ -e "$venv/complete" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check numpy onnx onnxruntime tokenizers
"$venv/bin/python" "$root/bench/peers/reference.py" "$models"
