#!/bin/bash
# Installs from Debian what is missing. setup.sh: for the library and its command; setup.sh tests: for everything.
set -euo pipefail

packages=(build-essential ccache cmake libcli11-dev libfmt-dev ninja-build nlohmann-json3-dev)
if [ "${1:-}" = tests ]; then
  packages+=(clang-14 clang-format-14 g++-aarch64-linux-gnu git googletest libclang-rt-14-dev libgtest-dev pkg-config
    python3-dev python3-venv qemu-user)
fi

# cuobjdump and nvdisasm, which some installations of nvcc lack: the tests read compiled kernels with them.
if [ "${1:-}" = tests ] && command -v nvcc >/dev/null && ! command -v cuobjdump >/dev/null &&
  [ ! -x "$(dirname "$(readlink -f "$(command -v nvcc)")")/cuobjdump" ]; then
  tools=$(dirname "$0")/../build/sass-tools
  [ -d "$tools/nvidia" ] || python3 -m pip install --quiet --root-user-action=ignore --target "$tools" \
    nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm || echo "setup: no cuobjdump; compiled kernels are not checked"
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
