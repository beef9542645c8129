#!/bin/bash
# Everything that needs a GPU, in one command: builds, checks against float64 on the CPU, sanitizers, graphs and streams,
# then times. Resumable: a step that has passed leaves a mark in build/gpu_check and is not repeated. Stops by itself
# after LIMIT_S seconds (default 570); run it again to go on.
#
#   tools/gpu_check.sh            all steps that have not passed yet
#   tools/gpu_check.sh --again    all steps
#   PROGRAM=path tools/gpu_check.sh   with a clary_gpu_check that was built elsewhere
#   LIBRARY=path tools/gpu_check.sh   with a libclary.so that was built elsewhere, for the Python package
#   RESULTS=folder tools/gpu_check.sh   where the times go; default bench/results/gpu
#   PEERS=folder tools/gpu_check.sh   times flash-attn 3 and SageAttention too. The folder holds their wheels, or copies of
#       their sources (flash-attention, SageAttention); they are put into build/gpu_peers and nowhere else. Sources take
#       longer to build than there is time: what is built stays, run it again.
#
# Exits 0 when everything has passed (what is not installed, compute-sanitizer or PyTorch, is named as skipped), 1 when something is wrong, 3 where there is no GPU, 4 when time ran out.
set -uo pipefail
cd "$(dirname "$0")/.."
marks=build/gpu_check
results=${RESULTS:-bench/results/gpu}
limit_s=${LIMIT_S:-570}
begin_s=$SECONDS
[ "${1:-}" = --again ] && rm -rf "$marks"
mkdir -p "$marks"
wrong=0
table=
note() { table+=$(printf '%-12s %s' "$1" "$2")$'\n'; }
# However it ends: which steps passed, which did not, which were not reached.
finish() {
  [ -z "$table" ] || printf '\nstep         result\n%s%s steps wrong, %s s\n' "$table" "$wrong" "$((SECONDS - begin_s))"
}
trap finish EXIT

left_s() { echo $((limit_s - (SECONDS - begin_s))); }

# step <name> <most seconds> <command...>
step() {
  local name=$1 most=$2 status
  shift 2
  if [ -e "$marks/$name.passed" ]; then
    note "$name" "passed before"
    return 0
  fi
  if [ "$(left_s)" -lt 10 ]; then
    note "$name" "not reached: time is up, run this again"
    exit 4
  fi
  [ "$most" -lt "$(left_s)" ] || most=$(left_s)
  echo "== $name (at most $most s)"
  timeout "$most" "$@" >"$marks/$name.log" 2>&1
  status=$?
  tail -n "${TAIL:-8}" "$marks/$name.log"
  if [ "$status" = 0 ]; then
    touch "$marks/$name.passed"
    note "$name" passed
  elif [ "$status" = 124 ] && [ "$(left_s)" -lt 10 ]; then
    note "$name" "not done: time is up, run this again"
    exit 4
  else
    note "$name" "WRONG, status $status (log: $marks/$name.log)"
    wrong=$((wrong + 1))
  fi
  return "$status"
}

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  echo "no GPU here: nvidia-smi shows none. Nothing was checked."
  exit 3
fi

build() {
  { ./scripts/setup.sh tests || true; } && cmake --preset release -DCLARY_CUDA=ON -DCLARY_GPU_VARIANTS=ON &&
    cmake --build --preset release -j "$(nproc)" --target clary_gpu_check clary
}
if [ -n "${PROGRAM:-}" ]; then
  program=$PROGRAM
  [ -x "$program" ] || { echo "PROGRAM: $program is no program"; exit 1; }
else
  step build 560 build || exit 1
  program=build/release/tests/cuda/clary_gpu_check
fi
step devices 60 "$program" devices || exit 1

# FlashAttention's shapes, then the edges of what may be combined.
grid=$marks/grid.txt
{
  for shape in "lq1 lk1" "lq64 lk128" "lq128 lk192" "lq256 lk256" "lq239 lk1" "lq799 lk3" "lq113 lk203" "lq113 lk128" \
    "lq128 lk217" "lq113 lk211" "lq108 lk256" "lq256 lk512" "lq384 lk256" "lq640 lk128" "lq512 lk256" "lq1024 lk1024" \
    "lq1023 lk1024" "lq1024 lk1023" "lq4096 lk4096" "lq4224 lk4224"; do
    for precision in "bf16 exact" "f16 int8" "bf16 int4"; do
      echo "hq6 hkv2 $shape d128 causal $precision"
      echo "hq6 hkv6 $shape d64 $precision"
    done
  done
  for d in 32 40 59 64 72 80 96 111 128 160 192 224 256; do
    for precision in "f16 exact" "bf16 precision=bf16" "f32 int8_f16" "bf16 int8" "bf16 int4"; do
      echo "b2 hq4 hkv2 lq257 lk513 d$d causal $precision"
      echo "b1 hq2 hkv1 lq200 lk1100 d$d dv96 window200,50 sinks $precision"
    done
  done
} >"$grid"
step compare 60 "$program" compare
step grid 150 "$program" lines "$grid"
step mixed 90 "$program" mixed 1500 1
step bad 30 "$program" bad
step streams 60 "$program" streams
step large 120 "$program" large
library=${LIBRARY:-build/release/libclary.so}
if [ ! -e "$library" ]; then
  note python "skipped: there is no $library"
elif ! python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  note python "skipped: no PyTorch that sees the GPU"
else
  step python 120 env CLARY_LIBRARY="$(realpath "$library")" PYTHONPATH="bindings/python:${PYTHONPATH:-}" \
    python3 tools/gpu_python.py
fi

# Times, only of kernels that are right.
if [ "$wrong" = 0 ]; then
  mkdir -p "$results"
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit --format=csv >"$results/machine.csv"
  date -u +%Y-%m-%dT%H:%MZ >>"$results/machine.csv"
  TAIL=60 step bench 120 "$program" bench "$results/gpu.json" && cp "$marks/bench.log" "$results/table.txt"
  TAIL=60 step variants 60 "$program" variants "$results/variants.json" && cp "$marks/variants.log" "$results/variants.txt"
  if python3 -c 'import torch' 2>/dev/null; then
    if [ -n "${PEERS:-}" ]; then
      step peers 560 tools/gpu_peers.sh "$PEERS" build/gpu_peers
    else
      note peers "skipped: PEERS names no folder with flash-attn 3 or SageAttention"
    fi
    TAIL=80 step torch 150 env PYTHONPATH="build/gpu_peers/site:${PYTHONPATH:-}" python3 tools/gpu_torch.py \
      "$results/torch.json"
  else
    note torch "skipped: no PyTorch, no peers were timed"
  fi
  echo "results: $results"
else
  note bench "skipped: something is wrong"
fi
# Small problems: the sanitizers slow kernels down a hundredfold.
small=$marks/small.txt
{
  for precision in "bf16 exact" "bf16 int8" "bf16 int4" "f16 int8_f16"; do
    for d in 64 128 256; do
      echo "hq2 hkv1 lq150 lk300 d$d causal $precision"
    done
  done
  echo "hq2 hkv1 lq70 lk200 d40 mask=bool:0.5 alibi softcap20 bf16 int8"
} >"$small"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    step "$tool" 100 compute-sanitizer --tool "$tool" --error-exitcode 9 "$program" lines "$small"
  done
else
  for tool in memcheck racecheck initcheck; do note "$tool" "skipped: compute-sanitizer is not installed"; done
fi
[ "$wrong" = 0 ]
