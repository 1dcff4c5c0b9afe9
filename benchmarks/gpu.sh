#!/usr/bin/env bash
# Everything that needs a GPU: the kernels and the test suite, then speeds. Results go to the folder given
# (default benchmarks/results/gpu). Parts may be named where time is short; without names all run, in this order:
#
#   kernels    the kernels' tests, compiled, against their plain forms       5 min at most
#   7b         a random 7B: plain and packed weights, kernel by kernel        15 min
#   peers      transformers, compiled, with a static cache                    4 min
#   tests      the tests of the model, the runtime and the engine             6 min
#   adapters   base, LoRA, many LoRAs, X-LoRA; rows under a grammar           12 min
#   small      a 1.1B, products form by form, unpacking, the host's part      10 min
#
#   benchmarks/gpu.sh [OUTPUT_FOLDER [PART...]]
#
# Needs an environment with jax[cuda12] or jax[cuda13] and mistral-jax-server[test]; nothing is installed or downloaded here.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
OUT=$(mkdir -p "${1:-benchmarks/results/gpu}" && cd "${1:-benchmarks/results/gpu}" && pwd)
shift || true
PARTS=${*:-kernels 7b peers tests adapters small}
for part in $PARTS; do
  case $part in kernels|7b|peers|tests|adapters|small) ;; *) echo "no part is named $part: see the head of $0" >&2; exit 2 ;; esac
done

python -c 'import jax; d = jax.devices()[0]; assert d.platform == "gpu", f"no GPU: JAX found {d}"; print(jax.__version__, d.device_kind)' || exit 1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$OUT/device.csv"

for part in $PARTS; do
  case $part in
    kernels)
      echo "== kernels, compiled and compared with their plain forms"
      timeout 300 python -m pytest -q --timeout 200 tests/mistral_jax/model/test_attention.py \
        tests/mistral_jax/model/test_attention_kernel.py tests/mistral_jax/model/test_store_kernel.py \
        tests/mistral_jax/model/test_norm_kernel.py tests/mistral_jax/quant/test_grouped.py \
        tests/mistral_jax/quant/test_matrix_kernel.py tests/mistral_jax/runtime/test_several.py \
        tests/mistral_jax/runtime/sampling/test_truncation.py 2>&1 | tee "$OUT/kernels.log" | tail -15
      ;;
    7b)
      echo "== random 7B in bfloat16, weights made on the device"
      timeout 200 python -m benchmarks.decode_on_device 7b --dtype bfloat16 --rows 1,8,64 --output "$OUT/7b-bfloat16.json"
      echo "== in packed weights"
      for quant in Q8_0 Q4_K int8; do
        timeout 150 python -m benchmarks.decode_on_device 7b --quant $quant --rows 1,8,64 --output "$OUT/7b-$quant.json"
      done
      echo "== kernel by kernel, beside their bytes (without command buffers, in which kernels have no names)"
      for quant in none Q4_K; do
        XLA_FLAGS=--xla_gpu_enable_command_buffer= timeout 150 python -m benchmarks.decode_on_device 7b --quant $quant \
          --rows 8 --profile --output "$OUT/7b-profile-$quant.json"
      done
      ;;
    peers)
      echo "== transformers, compiled, with a static cache"
      timeout 240 python benchmarks/time_transformers.py random:7b bfloat16 1,8,64 512 64 cuda compiled \
        > "$OUT/transformers-7b.json"
      ;;
    tests)
      echo "== tests"
      timeout 360 python -m pytest -q -x --timeout 120 tests/mistral_jax tests/serving/engine/test_engine.py 2>&1 \
        | tee "$OUT/tests.log" | tail -15
      ;;
    adapters)
      echo "== adapters: base, LoRA, many LoRAs, X-LoRA, X-LoRA ahead"
      timeout 200 python -m benchmarks.decode_with_adapters random:1b --rows 1,8,32 --output "$OUT/adapters-1b.json"
      timeout 250 python -m benchmarks.decode_with_adapters random:7b --rows 1,8 --rounds 5 --output "$OUT/adapters-7b.json"
      echo "== rows under a grammar beside free ones"
      timeout 250 python -m benchmarks.constrained 1b --output "$OUT/constrained-1b.json"
      ;;
    small)
      echo "== random 1.1B"
      timeout 120 python -m benchmarks.decode_on_device 1b --dtype bfloat16 --rows 1,8,32 --output "$OUT/1b-bfloat16.json"
      echo "== products with packed weights, form by form"
      timeout 200 python -m benchmarks.quantized_products --output "$OUT/quantized-products.json"
      echo "== unpacking on the device"
      timeout 60 python -m benchmarks.dequantize > "$OUT/dequantize.json"
      echo "== the host's part of a step"
      timeout 150 python -m benchmarks.host_time --rounds 3 --output "$OUT/host-time.json"
      ;;
  esac
done
