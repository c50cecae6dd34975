#!/bin/sh
# Everything that needs a GPU, on a machine without network that has what a PyTorch image has:
#
#     sh benchmarks/gpu_suite.sh prepare                     # before, with network: wheels/, 8 MB
#     OUT=results WHEELS=wheels sh benchmarks/gpu_suite.sh [PARTS]
#
# To carry: this tree (IMAGEBERT_COMMIT names its commit where the history stays behind) and wheels/. To bring back:
# $OUT, after each call. LIMIT is the seconds of a whole call: what no longer fits is left out, so that the table of
# parts is always printed. In calls of LIMIT=580, in this order:
#     1. check tests base         is it right at all?
#     2. real ops                 where does the time go? beside all peers
#     3. tune large
#     4. score sanitizer
#     5. feed-tests feed plan     a second half hour
#     6. compiled detector
#
#     part        what it does                                                               $OUT/..., CARD is told
#     check       whole steps: kernels against reference, eager = filled = graphed = compiled  check_gpu_CARD.json
#     tests       the kernels in bf16 and fp16 against float64
#     base        steps of base at full length beside VisualBERT, and which of them wait       train_gpu_CARD_base.json
#     real        the same at real lengths, compiled too                                       train_gpu_CARD_real.json
#     ops         every kernel beside what else there is                                       ops_gpu_CARD.json
#     tune        all tilings of attention                                                     ops_gpu_CARD_tune.json
#     large       as base, of the large model                                                  train_gpu_CARD_large.json
#     score       exact evaluation beside VisualBERT, COCO 5K from it                          score_gpu_CARD.json
#     sanitizer   two files of kernel tests under compute-sanitizer, where that is installed
#     feed-tests  feeder and optimizers on the GPU
#     feed        the feeder's rate beside its peers'                                          feed_gpu_CARD.json
#     plan        constants of `imagebert plan`, and what a checkpoint costs                   calibrate_gpu_CARD.json
#     compiled    as base, ours and VisualBERT through torch.compile                       train_gpu_CARD_compiled.json
#     detector    pictures a second of the Visual Genome detector, its tests on the GPU first  extract_gpu_CARD.json
#
# A part that fails or takes over 8 minutes does not end the others, but the exit status is 1 then. JSON is written as
# figures come, and each part's output is in $OUT/PART.log.
set -eu
cd "$(dirname "$0")/.."
PARTS='check tests base real ops tune large score sanitizer feed-tests feed plan compiled detector'

# Makes a folder anew: wheels for Python 3.12 of what a PyTorch image lacks, in the versions that were tested together.
# DeepSpeed is published as source only; its set-up imports torch.
prepare() {
    PYTHON=${PYTHON:-.venv/bin/python}
    mkdir -p "$1"
    rm -f "$1"/*.whl
    DS_BUILD_OPS=0 "$PYTHON" -m pip wheel --quiet -c constraints.txt --no-deps --no-build-isolation -w "$1" deepspeed
    download "$1" lmdb isal msgpack rich hjson==3.1.0 py-cpuinfo==9.0.0 liger-kernel==0.8.5 pydantic==2.14.4 \
        annotated-types==0.8.0 typing-extensions==4.16.0 typing-inspection==0.4.5
    # pydantic runs with one version of its core only, and names it.
    download "$1" "$("$PYTHON" -c '
import glob, re, sys, zipfile
[wheel] = [zipfile.ZipFile(path) for path in glob.glob(sys.argv[1] + "/pydantic-*.whl")]
[metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
print(re.search(r"Requires-Dist: (pydantic-core==[\w.]+)", wheel.read(metadata).decode())[1])' "$1")"
    du -ck "$1"/*.whl
}

download() {
    folder=$1
    shift
    "$PYTHON" -m pip download --quiet -c constraints.txt -d "$folder" --no-deps --only-binary :all: \
        --implementation cp --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux_2_17_x86_64 "$@"
}

if [ "${1:-}" = prepare ]; then
    prepare "${2:-wheels}"
    exit
fi
for part in "$@"; do
    case " $PARTS " in
    *" $part "*) ;;
    *)
        echo "$part is no part: give some of $PARTS, or prepare" >&2
        exit 2
        ;;
    esac
done

OUT=${OUT:?name a folder for the results}
mkdir -p "$OUT"
PYTHON=${PYTHON:-python3}
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
trap 'exit 1' INT TERM
BEGUN=$(date +%s)
NAME=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -1)
case $NAME in
*H100*) CARD=h100 ;;
*H200*) CARD=h200 ;;
*) CARD=other ;;
esac
# Beside the image's packages, not among them.
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$SCRATCH/packages" "$WHEELS"/*.whl
    PYTHONPATH=$SCRATCH/packages${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET IMAGEBERT_KERNELS || true

# Runs a part's command, its output in $OUT/$part.log.
logged() {
    timeout -k 10 "$seconds" "$@" > "$OUT/$part.log" 2>&1
}

# python -m benchmarks.$1 with its figures in $OUT/$2.json; an earlier call's would pass for this one's.
measured() {
    module=$1 json=$2.json
    shift 2
    rm -f "$OUT/$json"
    logged "$PYTHON" -m "benchmarks.$module" "$@" --json "$OUT/$json"
}

# pytest under the command $UNDER, if any; pyproject.toml's options need packages that the image lacks. A fixed
# workspace is what deterministic cuBLAS asks for: the tests poison memory in deterministic mode.
tested() {
    # shellcheck disable=SC2086
    logged env CUBLAS_WORKSPACE_CONFIG=:4096:8 TRITON_INTERPRET=0 ${UNDER:-} \
        "$PYTHON" -m pytest -o addopts=--import-mode=importlib -q --maxfail=40 "$@"
}

run_part() {
    case $part in
    check) measured check "check_gpu_$CARD" ;;
    tests)
        parallel=$("$PYTHON" -c 'import xdist; print("-n 12")' 2> /dev/null || true)
        # shellcheck disable=SC2086
        tested tests/kernels --ignore tests/kernels/test_compiled.py --confcutdir=tests/kernels $parallel
        ;;
    base | large)
        measured train "train_gpu_${CARD}_$part" --models "$part" --mixes full --turns 2 --steps eager graphed
        ;;
    real)
        measured train "train_gpu_${CARD}_real" --models base --mixes real --turns 2 --steps eager compiled graphed
        ;;
    compiled)
        measured train "train_gpu_${CARD}_compiled" --models base --mixes full --turns 2 --steps compiled --compile
        ;;
    ops) measured ops "ops_gpu_$CARD" --pairs 256 --plots "$OUT" ;;
    tune) measured ops "ops_gpu_${CARD}_tune" --tune full ;;
    score)
        measured score "score_gpu_$CARD" --model base --mix real --images 200 --captions 500 --turns 2
        ;;
    sanitizer)
        if ! command -v compute-sanitizer > /dev/null; then
            echo 'compute-sanitizer is not installed'
            return $LEFT_OUT
        fi
        # Without PyTorch's cache each tensor is an allocation of its own: who reads past one is seen.
        UNDER='env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9'
        tested tests/kernels/test_attention.py tests/kernels/test_classification.py --confcutdir=tests/kernels \
            -k '(few_and_many or rows_behind or rows_may_lie_apart or all_rows or no_row) and not reference'
        ;;
    feed-tests) tested tests/feed/test_feeder.py tests/engine/test_optimizers.py ;;
    feed)
        measured feed "feed_gpu_$CARD" --device cuda --gib 1 --seconds 1 --turns 2 --folder "$SCRATCH/feed"
        ;;
    plan) measured calibrate "calibrate_gpu_$CARD" ;;
    detector)
        tested tests/regions/vg/test_parity.py tests/regions/vg/test_operators.py -m gpu &&
            measured extract "extract_gpu_$CARD" --pictures 6
        ;;
    esac
}

LEFT_OUT=77
status=0
for part in ${*:-$PARTS}; do
    echo "== $part"
    json='' UNDER='' code=0
    begun=$(date +%s)
    seconds=480
    left=$((${LIMIT:-100000} - begun + BEGUN))
    [ "$left" -ge $seconds ] || seconds=$left
    if [ "$seconds" -ge 20 ]; then
        run_part || code=$?
    else
        echo 'no time is left for it'
        code=$LEFT_OUT
    fi
    case $code in
    0)
        state=ok
        case $part in
        tests | feed-tests | sanitizer) tail -3 "$OUT/$part.log" ;;
        *) grep -Ev '^(\{|step )' "$OUT/$part.log" || true ;;
        esac
        ;;
    "$LEFT_OUT") state='left out' ;;
    *)
        state=failed status=1
        case $code in 124 | 137) state="failed: ended after $seconds s" ;; esac
        tail -60 "$OUT/$part.log"
        ;;
    esac
    [ -n "$json" ] && [ -e "$OUT/$json" ] || json=-
    printf '%-12s %-26s %5s  %s\n' "$part" "$state" $(($(date +%s) - begun)) "$json" >> "$SCRATCH/table"
done
echo "== ${NAME:-no GPU is seen}"
printf '%-12s %-26s %5s  %s\n' part state s 'in $OUT'
cat "$SCRATCH/table"
exit $status
