#!/bin/bash
# Installs from Debian what is missing. setup.sh: for the library and its command; setup.sh tests: for everything.
set -euo pipefail

packages=(build-essential ccache cmake libcli11-dev libfmt-dev ninja-build nlohmann-json3-dev)
if [ "${1:-}" = tests ]; then
  packages+=(clang-14 clang-format-14 g++-aarch64-linux-gnu googletest libclang-rt-14-dev libgtest-dev pkg-config
    python3-dev python3-venv qemu-user)
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
