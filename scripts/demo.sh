#!/bin/bash
# Installs what is missing, builds the library and the command, and shows them on the Q, K and V of a trained model.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/setup.sh
build=${CLARY_BUILD_ROOT:-build}/release
# The demo needs neither the packages of the tests nor CUDA kernels, so its first build leaves them out.
[ -f "$build/build.ninja" ] || cmake --preset release -B "$build" -DCLARY_BUILD_TESTS=OFF -DCLARY_CUDA=OFF >/dev/null
cmake --build "$build" --target clary clary_command
exec "$build/tools/clary" demo "$@"
