#!/bin/bash
# gpu_peers.sh FROM TO: installs flash-attn 3 and SageAttention into TO/site, for tools/gpu_torch.py to time. FROM holds their
# wheels, or copies of their sources as flash-attention/hopper and SageAttention. Nothing is downloaded, and FROM is only read.
# Run again after a stop, it goes on: sources are built in a copy in TO, where ninja finds what has been compiled. Building
# needs nvcc and the Python packages torch, setuptools, wheel, packaging and ninja.
set -euo pipefail
from=$1 to=$2
if ! compgen -G "$from/*.whl" >/dev/null && [ ! -e "$from/flash-attention/hopper/setup.py" ] &&
  [ ! -e "$from/SageAttention/setup.py" ]; then
  echo "$from: holds no wheel, no flash-attention/hopper and no SageAttention"
  exit 1
fi
mkdir -p "$to"
install=(python3 -m pip install --quiet --no-index --no-deps --no-build-isolation --upgrade --target "$to/site")
for wheel in "$from"/*.whl; do
  [ ! -e "$wheel" ] || "${install[@]}" "$wheel"
done
for source in flash-attention/hopper SageAttention; do
  name=${source%%/*}
  [ -e "$from/$source/setup.py" ] && [ ! -e "$to/$name.built" ] || continue
  if [ ! -e "$to/$name.copied" ]; then
    rm -rf "${to:?}/$name"
    cp -r "$from/$name" "$to/$name"
    touch "$to/$name.copied"
  fi
  "${install[@]}" "$(realpath "$to/$source")"
  touch "$to/$name.built"
done
ls "$to/site"
