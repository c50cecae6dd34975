#!/usr/bin/env bash
# Exact R@K of a fine-tuned run (or any model folder) on a test split; all GPUs of all nodes share the work, and a job
# that was stopped or killed goes on where it was. key=value is not taken.
#
#     sbatch slurm/evaluate.sh --dataset coco --data /data --from runs/finetune_coco
#
# Options, and what each reads from the environment, are at the head of common.sh.
#SBATCH --nodes=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=12:00:00 --signal=USR1@300 --requeue --open-mode=append --output=slurm-%x-%j.out
SCRIPT=$0 TITLE=imagebert-evaluate RECIPE=''
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

DATASET=flickr30k SPLIT=test WRITES=
option() { # --dataset NAME, --split NAME
    case $1 in
    --dataset) DATASET=$2 ;;
    --split) SPLIT=$2 ;;
    *) wrong "unknown option $1; --help lists them" ;;
    esac
}
prepare() {
    : "${FROM:=$RUNS/finetune_$DATASET}"
    RUN=$FROM
    REGIONS=("$DATA/$DATASET/regions") PAIRS=("$DATA/$DATASET/pairs")
    ((${#OVERRIDES[@]} == 0)) || wrong "evaluate.sh takes no ${OVERRIDES[0]}: a model says itself what it is"
}
progress() { # a job that adds scores may fail again
    find "$RUN/evaluation" -name '*.tiles' -printf '%s\n' 2>/dev/null | awk '{ n += $1 } END { print n + 0 }'
}
work() {
    local evaluate=(imagebert evaluate "$FROM" --regions "${REGIONS[0]}" --pairs "${PAIRS[0]}" --split "$SPLIT")
    launch "${evaluate[@]}" --json "$FROM/recall-$DATASET-$SPLIT.json" || return
    # COCO 1K is counted in the same scores.
    [[ $DATASET != coco ]] || launch --once "${evaluate[@]}" --folds 5 --json "$FROM/recall-coco1k-$SPLIT.json"
}
main "$@"
