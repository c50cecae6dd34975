#!/usr/bin/env bash
# Photographs to one region store: a job array extracts equal parts, a job behind it merges them.
#
#     slurm/extract.sh --images /data/coco/images --out /data/coco/regions --extractor extractor.yaml --parts 16
#
# Options, and what each reads from the environment, are at the head of common.sh.
#SBATCH --nodes=1 --gpus-per-node=1 --cpus-per-task=8
#SBATCH --time=12:00:00 --signal=USR1@300 --requeue --open-mode=append --output=slurm-%x-%j.out
SCRIPT=$0 TITLE=imagebert-extract RECIPE=''
for IMAGEBERT_HOME in "${IMAGEBERT_HOME:-}" "$(dirname "$(readlink -f "$0")")/.." "${SLURM_SUBMIT_DIR:-.}" \
    "${SLURM_JOB_ID:+$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's|.* Command=\(/.*\)/slurm/[a-z0-9]*\.sh .*|\1|p')}"; do
    [[ -f $IMAGEBERT_HOME/slurm/common.sh ]] && break
done
IMAGEBERT_HOME=$(cd -P "$IMAGEBERT_HOME/slurm/.." && pwd)
# shellcheck source=slurm/common.sh
source "$IMAGEBERT_HOME/slurm/common.sh" || {
    echo "imagebert: submit from the repository, or export IMAGEBERT_HOME" >&2
    exit 2
}

IMAGES='' OUT='' EXTRACTOR='' PARTS=8 MERGE=0 STEP_TASKS=1 REGIONS=() PAIRS=() WRITES=
option() { # --images DIR|TAR, --out STORE, --extractor FILE, --parts N, and --merge 1 for the last job
    case $1 in
    --images) IMAGES=$2 ;;
    --out) OUT=$2 ;;
    --extractor) EXTRACTOR=$2 ;;
    --parts) PARTS=$2 ;;
    --merge) MERGE=$2 ;;
    *) wrong "unknown option $1; --help lists them" ;;
    esac
}
prepare() {
    NODES=1
    ((GPUS < 1)) || GPUS=1
    RUN=$(dirname "$OUT") MOUNTS=("$IMAGES" "$(dirname "$EXTRACTOR")")
    [[ -e $IMAGES && -f $EXTRACTOR && -n $OUT && $PARTS =~ ^[1-9][0-9]*$ ]] ||
        wrong "give --images FOLDER|TAR, --out STORE, --extractor FILE and --parts N"
    if ! in_job || ((DRY)); then
        ((MERGE)) || SBATCH+=("--array=0-$((PARTS - 1))")
    elif ((!MERGE)) && [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
        wrong "this is a job array: call slurm/extract.sh itself, or sbatch --array=0-$((PARTS - 1)) slurm/extract.sh"
    fi
}
progress() { size_of "$OUT${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}"; }
work() {
    if ((MERGE)); then
        local number parts=()
        for ((number = 0; number < PARTS; number++)); do parts+=("$OUT-$number"); done
        launch --once imagebert store merge "${parts[@]}" "$OUT"
    else
        local part=${SLURM_ARRAY_TASK_ID:-0}
        [[ ! -f $OUT-$part/meta.json ]] || return 0 # a requeued part that was whole
        launch --once imagebert extract "$IMAGES" "$OUT-$part" --extractor "$EXTRACTOR" --part "$part/$PARTS"
    fi
}
if in_job || [[ " $* " == *" --merge"* || " $* " == *" --help "* ]]; then
    main "$@"
else
    first=$(main "$@") || exit
    printf '%s\n' "$first"
    [[ " $* " == *" --dry-run "* ]] && first=ARRAY
    main "$@" --merge 1 --after "$first"
fi
