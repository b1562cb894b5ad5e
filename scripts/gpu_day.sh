#!/usr/bin/env bash
# What a machine with an NVIDIA GPU is asked for when there is one, for a short time and without
# registries: parity, limits, speed beside PyTorch, a profile.
#
#   scripts/gpu_day.sh build [FEATURES]  here: programs into target/gpu-day (default: cuda)
#   scripts/gpu_day.sh run OUT           there: every step, in order of worth, into OUT
#   scripts/gpu_day.sh profile OUT       there: kernels of decoded tokens and of a training step
#   scripts/gpu_day.sh table OUT         anywhere: the Markdown table of what OUT holds
#
# DEVICE=vulkan DRY=1 … run OUT goes through the same steps with tiny shapes on any driver.
# BUDGET (seconds, default 460) bounds `run`; each step has a limit of its own within it.
set -uo pipefail
cd "$(dirname "$0")/.."

HOLD=target/gpu-day
DEVICE=${DEVICE:-cuda}
DRY=${DRY:-}
BUDGET=${BUDGET:-460}
PYTHON=${PYTHON:-python3}
START=$SECONDS

build() {
  local features=${1:-cuda}
  # The oldest API that is used: the binary then runs with every later driver.
  export CUDARC_CUDA_VERSION=${CUDARC_CUDA_VERSION:-12040} CARGO_INCREMENTAL=0
  set -e
  mkdir -p "$HOLD"
  cargo build --release --locked -p sq-llava --no-default-features --features "command,cpu,$features"
  for device in ${features//,/ }; do
    local found
    found=$(cargo test --release --locked -p sq-llava --no-default-features --features "command,cpu,$features" \
      --test "golden_$device" --no-run --message-format short 2>&1 | tee /dev/stderr |
      sed -n 's/.*(\(.*golden_'"$device"'-[0-9a-f]*\)).*/\1/p')
    cp "$found" "$HOLD/golden_$device"
  done
  cp target/release/sq-llava "$HOLD/sq-llava"
  (cd "$HOLD" && strip ./* 2>/dev/null; rm -f ./*.xz; xz -T0 -k sq-llava golden_*)
  tar -C golden -cJf "$HOLD/golden.tar.xz" data
  # The plain ones stay here; only what is packed travels.
  mkdir -p "$HOLD/packed"
  mv "$HOLD"/*.xz "$HOLD/packed/"
  du -ch "$HOLD"/packed/*
}

unpack() {
  [ -x "$HOLD/unpacked/sq-llava" ] && return
  mkdir -p "$HOLD/unpacked"
  for file in "$HOLD"/packed/*.xz; do
    case $file in
      *.tar.xz) tar -C "$HOLD/unpacked" -xJf "$file" ;;
      *) "$PYTHON" -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$file" \
        "$HOLD/unpacked/$(basename "$file" .xz)" ;;
    esac
  done
  chmod +x "$HOLD"/unpacked/sq-llava "$HOLD"/unpacked/golden_*
}

# step NAME SECONDS COMMAND…: output in OUT/NAME.txt, end and time in OUT/steps.jsonl.
step() {
  local name=$1 limit=$2 left=$((BUDGET - SECONDS + START)) begin=$SECONDS status
  shift 2
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 5 ]; then
    echo "{\"step\": \"$name\", \"status\": \"no time left\", \"seconds\": 0}" >>"$OUT/steps.jsonl"
    return
  fi
  timeout -k 5 "$limit" "$@" >"$OUT/$name.txt" 2>&1
  status=$?
  echo "{\"step\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - begin))}" >>"$OUT/steps.jsonl"
  echo "== $name: status $status, $((SECONDS - begin)) s"
  tail -n 4 "$OUT/$name.txt"
}

probe() {
  if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
  "$SQ" --version
  for name in libcuda.so.1 libnvrtc.so libnvrtc.so.12 libnvrtc.so.13 libvulkan.so.1; do
    ldconfig -p | grep -m1 "$name " || echo "$name: not found"
  done
  ls -d /usr/local/cuda* /opt/cuda* 2>/dev/null
  echo "CUDA_PATH=${CUDA_PATH:-} LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"
  "$PYTHON" -c 'import torch, transformers, peft
print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__, torch.version.cuda)'
}

# NVRTC and headers from PyTorch's own packages where the system has no toolkit.
find_toolkit() {
  [ "$DEVICE" = cuda ] || return
  ldconfig -p | grep -q 'libnvrtc.so' && [ -f "${CUDA_PATH:-/usr/local/cuda}/include/cuda_runtime.h" ] && return
  local site
  site=$("$PYTHON" -c 'import nvidia, os; print(list(nvidia.__path__)[0])' 2>/dev/null) || return
  for root in "$site"/cu13 "$site"/cuda_runtime; do
    [ -f "$root/include/cuda_runtime.h" ] && export CUDA_PATH=$root
  done
  for lib in "$site"/cu13/lib "$site"/cuda_nvrtc/lib; do
    [ -d "$lib" ] && export LD_LIBRARY_PATH=$lib:${LD_LIBRARY_PATH:-}
  done
  # The name that is looked for is the one without a version.
  mkdir -p "$HOLD/lib"
  for file in "$site"/cu13/lib/libnvrtc.so.1[23] "$site"/cuda_nvrtc/lib/libnvrtc.so.1[23]; do
    [ -f "$file" ] && ln -sf "$file" "$HOLD/lib/libnvrtc.so"
  done
  export LD_LIBRARY_PATH=$PWD/$HOLD/lib:${LD_LIBRARY_PATH:-}
}

prepare() {
  OUT=$(mkdir -p "$1" && cd "$1" && pwd)
  unpack
  SQ=$PWD/$HOLD/unpacked/sq-llava
  export SQ_LLAVA_GOLDEN=$PWD/$HOLD/unpacked/data SQ_LLAVA_GOLDEN_FAMILIES=$PWD/$HOLD/unpacked/data/families
  find_toolkit
}

run() {
  prepare "$1"
  local shape=llama-7b torch=() dtype=bf16 batch=1,8,32 quick=() tokens=32
  if [ -n "$DRY" ]; then
    shape=llama-tiny torch=(--tiny --cpu) dtype=f32 batch=1 tokens=2
    quick=(--steps 2 --scenes 32 --held-out 2)
  fi
  export -f probe
  export SQ PYTHON
  local bench=("$SQ" bench --device "$DEVICE" --json)
  local decode=("${bench[@]}" --shape "$shape" --dtype "$dtype" --tokens "$tokens")
  step probe 20 bash -c probe
  step parity 90 "$HOLD/unpacked/golden_$DEVICE" golden --nocapture --test-threads 1
  step limits 30 "${bench[@]}" --limits
  step decode 80 "${decode[@]}" --batch "$batch" --skip-training
  step torch 120 "$PYTHON" scripts/bench_torch_gpu.py "${torch[@]}" "$OUT/torch.json"
  step train 100 "${decode[@]}" --batch 1
  for quantize in q8 q4; do
    step "decode_$quantize" 40 "${decode[@]}" --batch 1 --skip-training --quantize "$quantize"
  done
  step train_q4 100 "${decode[@]}" --batch 1 --quantize q4
  step quickstart 90 "$SQ" quickstart --device "$DEVICE" --out "$OUT/quickstart-files" "${quick[@]}"
  [ "$DEVICE" = cuda ] && [ -x "$HOLD/unpacked/golden_vulkan" ] &&
    step vulkan 60 "$HOLD/unpacked/golden_vulkan" golden --nocapture --test-threads 1
  rm -rf "$OUT/quickstart-files"
  "$PYTHON" scripts/gpu_day.py table "$OUT" | tee "$OUT/table.md"
}

profile() {
  prepare "$1"
  local shape=llama-7b dtype=bf16
  [ -n "$DRY" ] && shape=llama-tiny dtype=f32
  local bench=("$SQ" bench --device "$DEVICE" --shape "$shape" --dtype "$dtype" --batch 1 --repeat 1)
  # CubeCL's own log names each kernel with its time; it waits for each, so totals are not speeds.
  export CUBECL_DEBUG_OPTION=profile-medium
  CUBECL_DEBUG_LOG=$OUT/kernels-1.log step profile_tokens_1 60 "${bench[@]}" --tokens 1 --skip-training
  CUBECL_DEBUG_LOG=$OUT/kernels-9.log step profile_tokens_9 60 "${bench[@]}" --tokens 9 --skip-training
  CUBECL_DEBUG_LOG=$OUT/kernels-train.log step profile_train 90 "${bench[@]}" --tokens 1
  "$PYTHON" scripts/gpu_day.py kernels "$OUT" | tee "$OUT/kernels.md"
  rm -f "$OUT"/kernels-*.log
}

case ${1:-} in
  build) build "${2:-}" ;;
  run) run "${2:?folder for what comes out}" ;;
  profile) profile "${2:?folder for what comes out}" ;;
  table) "$PYTHON" scripts/gpu_day.py table "${2:?folder of a run}" ;;
  *) sed -n '2,14p' "$0"; exit 2 ;;
esac
