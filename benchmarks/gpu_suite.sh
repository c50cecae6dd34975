#!/bin/sh
# Everything that needs a GPU, without network, with what a PyTorch image has:
#
#     OUT=results sh benchmarks/gpu_suite.sh                 # all parts
#     OUT=results sh benchmarks/gpu_suite.sh tests ops       # some; each takes less than 9 minutes
#
#     tests   the kernels in bf16 and fp16 against float64; any miss ends the run with an error
#     ops     every kernel beside what else there is                              -> ops_gpu.json
#     base    whole steps beside VisualBERT, by parts, with no wait of the host   -> train_gpu_base.json
#     large   the same of the large model                                         -> train_gpu_large.json
#     feed    tests of feeder and optimizers on the GPU, then the feeder's rate beside peers'  -> feed_gpu.json
#     score   exact evaluation of base beside VisualBERT, and COCO 5K from it     -> score_gpu.json
#     plan    constants of `imagebert plan`, and what a checkpoint costs          -> calibrate_gpu.json
#
# The last five need deepspeed and lmdb. Where they are not installed, WHEELS names a folder that holds them:
#     DS_BUILD_OPS=0 pip wheel --no-deps --no-build-isolation -w WHEELS deepspeed
#     pip download --only-binary :all: --python-version 3.12 --no-deps -d WHEELS lmdb hjson pydantic pydantic-core \
#         annotated-types typing-inspection liger-kernel isal msgpack
# JSON, plots and logs go to $OUT; the lines to reach are printed last. The tree may be a copy without its history:
# IMAGEBERT_COMMIT names it.
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:?name a folder for the results}
mkdir -p "$OUT"
export PYTHONPATH=.:kernels PYTHONUNBUFFERED=1
unset TRITON_INTERPRET IMAGEBERT_KERNELS || true
PYTHON=${PYTHON:-python3}
[ -z "${WHEELS:-}" ] || "$PYTHON" -m pip install --quiet --no-index --no-deps "$WHEELS"/*.whl

# Runs a command of at most $1 seconds, its output in $OUT/$2.log; shows the end of it when it fails.
logged() {
    limit=$1 name=$2
    shift 2
    timeout "$limit" "$@" > "$OUT/$name.log" 2>&1 || {
        tail -60 "$OUT/$name.log"
        exit 1
    }
}

for part in ${*:-tests ops base large feed score plan}; do
    echo "== $part"
    case $part in
    tests)
        PARALLEL=$("$PYTHON" -c 'import xdist; print("-n 8")' 2> /dev/null || true)
        # A fixed workspace is what deterministic cuBLAS asks for; the tests poison memory in deterministic mode.
        export CUBLAS_WORKSPACE_CONFIG=:4096:8
        # shellcheck disable=SC2086
        logged 500 tests "$PYTHON" -m pytest tests/kernels --ignore tests/kernels/test_compiled.py $PARALLEL \
            --confcutdir=tests/kernels -o addopts="--import-mode=importlib" -q -x
        unset CUBLAS_WORKSPACE_CONFIG
        tail -1 "$OUT/tests.log"
        ;;
    ops)
        logged 520 ops "$PYTHON" -m benchmarks.ops --json "$OUT/ops_gpu.json" --plots "$OUT"
        grep -v '^{' "$OUT/ops.log"
        ;;
    base | large)
        logged 520 "$part" "$PYTHON" -m benchmarks.train --models "$part" --mixes full real --turns 3 \
            --steps eager compiled graphed --compile --json "$OUT/train_gpu_$part.json"
        grep -v '^step' "$OUT/$part.log"
        ;;
    feed)
        export CUBLAS_WORKSPACE_CONFIG=:4096:8
        TRITON_INTERPRET=0 logged 200 feed-tests "$PYTHON" -m pytest tests/feed/test_feeder.py \
            tests/engine/test_optimizers.py -o addopts="--import-mode=importlib" -q -x
        unset CUBLAS_WORKSPACE_CONFIG
        tail -1 "$OUT/feed-tests.log"
        logged 320 feed "$PYTHON" -m benchmarks.feed --device cuda --seconds 2 --turns 2 --folder "$OUT/../feed" \
            --json "$OUT/feed_gpu.json"
        cat "$OUT/feed.log"
        ;;
    score)
        logged 520 score "$PYTHON" -m benchmarks.score --model base --mix real full --turns 2 \
            --json "$OUT/score_gpu.json"
        cat "$OUT/score.log"
        ;;
    plan)
        logged 520 plan "$PYTHON" -m benchmarks.calibrate --json "$OUT/calibrate_gpu.json"
        cat "$OUT/plan.log"
        ;;
    *)
        echo "$part is no part: give some of tests, ops, base, large, feed, score, plan" >&2
        exit 2
        ;;
    esac
done
