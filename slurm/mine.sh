#!/usr/bin/env bash
# Hard negatives for fine-tuning, by a model: all GPUs of all nodes share the work. What stands behind -- goes to
# `imagebert mine` as it is.
#
#     slurm/mine.sh --dataset coco --data /data --from runs/finetune_coco --out runs/hard.safetensors -- --pool 256
#
# Options, and what each reads from the environment, are at the head of common.sh.
#SBATCH --nodes=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append --output=slurm-%x-%j.out
SCRIPT=$0 TITLE=imagebert-mine RECIPE='' TAKES_COMMAND=1
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

DATASET=flickr30k OUT=
option() { # --dataset NAME, --out FILE
    case $1 in
    --dataset) DATASET=$2 ;;
    --out) OUT=$2 ;;
    *) wrong "unknown option $1; --help lists them" ;;
    esac
}
prepare() {
    : "${FROM:=$RUNS/finetune_$DATASET}" "${OUT:=$FROM/hard_negatives.safetensors}"
    RUN=$FROM WRITES=$OUT
    REGIONS=("$DATA/$DATASET/regions") PAIRS=("$DATA/$DATASET/pairs")
}
progress() { size_of "$OUT"; }
work() {
    launch imagebert mine "$FROM" "$OUT" --regions "${REGIONS[0]}" --pairs "${PAIRS[0]}" ${COMMAND[@]+"${COMMAND[@]}"}
}
main "$@"
