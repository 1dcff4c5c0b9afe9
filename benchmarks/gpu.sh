#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the test suite, then speeds. Results go to the folder given (default benchmarks/results/gpu).
#
#   benchmarks/gpu.sh [OUTPUT_FOLDER]
#
# Needs an environment with jax[cuda12] or jax[cuda13] and mistral-jax-server[test]; nothing is installed or downloaded here.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
OUT=$(mkdir -p "${1:-benchmarks/results/gpu}" && cd "${1:-benchmarks/results/gpu}" && pwd)

python -c 'import jax; d = jax.devices()[0]; assert d.platform == "gpu", f"no GPU: JAX found {d}"; print(jax.__version__, d.device_kind)' || exit 1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$OUT/device.csv"

echo "== kernels, compiled and compared with their plain forms"
timeout 300 python -m pytest -q --timeout 200 tests/mistral_jax/model/test_attention.py \
  tests/mistral_jax/model/test_attention_kernel.py tests/mistral_jax/model/test_store_kernel.py \
  tests/mistral_jax/quant/test_grouped.py tests/mistral_jax/quant/test_matrix_kernel.py \
  tests/mistral_jax/runtime/test_several.py tests/mistral_jax/runtime/sampling/test_truncation.py 2>&1 \
  | tee "$OUT/kernels.log" | tail -15

echo "== tests"
timeout 360 python -m pytest -q -x --timeout 120 tests/mistral_jax tests/serving/engine/test_engine.py 2>&1 | tee "$OUT/tests.log" | tail -15

echo "== random 7B in bfloat16, weights made on the device"
timeout 200 python benchmarks/decode_on_device.py 7b --dtype bfloat16 --rows 1,8,32 --output "$OUT/7b-bfloat16.json"
echo "== the same kernel by kernel, beside their bytes (without command buffers, in which kernels have no names)"
for quant in none Q4_K; do
  XLA_FLAGS=--xla_gpu_enable_command_buffer= timeout 150 python -m benchmarks.decode_on_device 7b --quant $quant --rows 8 \
    --profile --output "$OUT/7b-profile-$quant.json"
done
echo "== transformers, compiled, with a static cache"
timeout 240 python benchmarks/time_transformers.py random:7b bfloat16 1,8,32 512 64 cuda compiled > "$OUT/transformers-7b.json"
echo "== the host's part of a step"
timeout 150 python -m benchmarks.host_time --rounds 3 --output "$OUT/host-time.json"
echo "== random 1.1B"
timeout 120 python benchmarks/decode_on_device.py 1b --dtype bfloat16 --rows 1,8,32 --output "$OUT/1b-bfloat16.json"

echo "== products with packed weights, form by form"
timeout 200 python benchmarks/quantized_products.py --output "$OUT/quantized-products.json"
echo "== random 7B in packed weights"
for quant in Q8_0 Q4_K int8; do
  timeout 150 python benchmarks/decode_on_device.py 7b --quant $quant --rows 1,8 --output "$OUT/7b-$quant.json"
done
echo "== unpacking on the device"
timeout 60 python benchmarks/dequantize.py > "$OUT/dequantize.json"

echo "== adapters: base, LoRA, many LoRAs, X-LoRA, X-LoRA ahead"
timeout 200 python benchmarks/decode_with_adapters.py random:1b --rows 1,8,32 --output "$OUT/adapters-1b.json"
timeout 250 python benchmarks/decode_with_adapters.py random:7b --rows 1,8 --rounds 5 --output "$OUT/adapters-7b.json"

echo "== rows under a grammar beside free ones"
timeout 250 python -m benchmarks.constrained 1b --output "$OUT/constrained-1b.json"
