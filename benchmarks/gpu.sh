#!/usr/bin/env bash
# On a machine with a CUDA GPU: the tests that hold there, then benchmarks/gpu.py; under 9 minutes.
#
#   bash benchmarks/gpu.sh [OUT] [--tiny] [--commit HASH]
#
# Not yet run on a GPU; --tiny tries everything on a CPU, in about two minutes.
# OUT is benchmarks/results/gpu.json. Needs jax, flax, optax, numpy and pytest; torch and timm for
# the comparison. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-$(command -v python3 || command -v python)}
budget=525 # seconds in all
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # for the processes that share the GPU

if [[ " $* " == *" --tiny "* ]]; then
  export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=
else
  export VIT_JAX_TEST_DEVICE=gpu
  "$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")' ||
    { echo "gpu.sh: JAX sees no GPU here (--tiny tries this script without one)" >&2; exit 2; }
fi

tests=none
mapfile -t files < <(grep -l 'mark\.gpu' tests/test_*.py || true)
if ((${#files[@]})); then
  code=0
  timeout 200 "$python" -m pytest -q -m gpu "${files[@]}" || code=$?
  case $code in
    0) tests=passed ;;
    124) tests='out of time' ;;
    *) tests="failed ($code)" ;;
  esac
fi
echo "tests: $tests"

"$python" benchmarks/gpu.py "$@" --tests "$tests" --seconds $((budget - SECONDS))
[[ $tests == passed || $tests == none ]]
