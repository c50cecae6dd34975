#!/bin/sh
# Everything that needs a GPU, in one call under 9 minutes, without network, with what a PyTorch image has:
#
#     OUT=results sh benchmarks/gpu_suite.sh
#
# First the kernels' tests in bf16 (any miss ends the run with an error), then the benchmarks. JSON, plots and logs go
# to $OUT; the lines to reach are printed last. The tree may be a copy without its history: IMAGEBERT_COMMIT names it.
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:?name a folder for the results}
mkdir -p "$OUT"
export PYTHONPATH=.:kernels PYTHONUNBUFFERED=1
unset TRITON_INTERPRET IMAGEBERT_KERNELS || true
PYTHON=${PYTHON:-python3}

echo "== kernels against float64"
# A fixed workspace is what deterministic cuBLAS asks for; the tests poison memory in deterministic mode.
PARALLEL=$("$PYTHON" -c 'import xdist; print("-n 8")' 2> /dev/null || true)
# shellcheck disable=SC2086
CUBLAS_WORKSPACE_CONFIG=:4096:8 timeout 240 "$PYTHON" -m pytest tests/kernels/test_attention.py $PARALLEL \
    --confcutdir=tests/kernels -o addopts="--import-mode=importlib" -q -x > "$OUT/tests.log" 2>&1 || {
    tail -60 "$OUT/tests.log"
    exit 1
}
tail -1 "$OUT/tests.log"

echo "== kernels beside what else there is"
timeout 280 "$PYTHON" -m benchmarks.ops --json "$OUT/ops_gpu.json" --plots "$OUT" > "$OUT/ops.log" 2>&1 || {
    tail -40 "$OUT/ops.log"
    exit 1
}
grep -v '^{' "$OUT/ops.log"
