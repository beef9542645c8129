#!/bin/bash
# Installs what is missing, builds everything and runs every test. The last line is `N passed, N failed`.
#   test.sh           every build, and the fuzzers for 60 seconds each
#   test.sh --quick   the optimised build and its tests only
set -uo pipefail
cd "$(dirname "$0")/.."
jobs=$(nproc)
# Objects compiled in one checkout serve another.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
passed=0 failed=0 skipped=0

# report <name> <passed> <failed> <skipped> <start>: the line of a stage, and the sums. SECONDS is the shell's clock.
report() {
  echo "$1: $2 passed, $3 failed, $4 skipped ($((SECONDS - $5)) s)"
  passed=$((passed + $2)) failed=$((failed + $3)) skipped=$((skipped + $4))
}

# check <preset> [targets...]: configures and builds, then runs the preset's tests and adds ctest's figures to the sums.
# What does not build counts as one failure.
check() {
  local preset=$1 log=build/$1.log start=$SECONDS total
  shift
  echo "== $preset"
  if ! { cmake --preset "$preset" && cmake --build --preset "$preset" -j "$jobs" ${1:+--target "$@"}; } >"$log" 2>&1; then
    tail -n 60 "$log"
    echo "$preset: the build failed"
    failed=$((failed + 1))
    return
  fi
  ctest --preset "$preset" -j "$jobs" >"$log" 2>&1
  total=$(sed -n 's/.*tests passed, [0-9]* tests* failed out of \([0-9]*\)$/\1/p' "$log")
  local lost=$(sed -n 's/.*tests passed, \([0-9]*\) tests* failed out of [0-9]*$/\1/p' "$log")
  if [ -z "$total" ]; then
    tail -n 60 "$log"
    echo "$preset: the tests did not run"
    failed=$((failed + 1))
    return
  fi
  # ctest counts a skipped test among the passed ones.
  local idle=$(grep -cE '\*\*\*Skipped' "$log")
  [ "$lost" = 0 ] || grep -vE ' Test +#[0-9]+: .* (Passed|\*\*\*Skipped)|^ *Start ' "$log"
  report "$preset" $((total - lost - idle)) "$lost" "$idle" "$start"
}

# The Python package: its wheel, built and installed into an environment of its own, and its tests.
check_python() {
  local venv=build/venv dist=build/dist log=build/python.log start=$SECONDS
  echo "== python"
  rm -rf "$dist"
  if ! {
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet -r tests/python/requirements.txt &&
      # The compilers' names and flags of `release`, so that its compiled objects are found again.
      CC=cc CXX=c++ "$venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$dist" -C cmake.define.CLARY_WERROR=ON . &&
      "$venv/bin/pip" install --quiet --no-deps --force-reinstall "$dist"/clary-*.whl
  } >"$log" 2>&1; then
    tail -n 60 "$log"
    echo "python: the package was not built"
    failed=$((failed + 1))
    return
  fi
  rm -f build/python.xml
  # The longest file first (mypy), or one worker would wait for it at the end.
  CLARY_WHEEL=$(echo "$dist"/clary-*.whl) "$venv/bin/python" -m pytest -n "$jobs" --dist loadfile \
    --no-loadscope-reorder --color=no --junit-xml=build/python.xml tests/python/test_package.py tests/python >"$log" 2>&1
  local total=0 lost=1 idle=0
  read -r total lost idle < <("$venv/bin/python" -c '
import xml.etree.ElementTree
suite = xml.etree.ElementTree.parse("build/python.xml").find("testsuite").attrib
print(suite["tests"], int(suite["failures"]) + int(suite["errors"]), suite["skipped"])')
  [ "$lost" = 0 ] || tail -n 200 "$log"
  report python $((total - lost - idle)) "$lost" "$idle" "$start"
}

if ! ./scripts/setup.sh tests; then
  echo "0 passed, 1 failed"
  exit 1
fi
mkdir -p build
check release
if [ "${1:-}" != --quick ]; then
  check_python
  check clang clary clary_command
  check asan
  check tsan clary_tests
  check neon clary_tests
  check fuzz
fi
[ "$skipped" = 0 ] || echo "$skipped skipped: instruction sets that this machine or its emulator lacks"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
