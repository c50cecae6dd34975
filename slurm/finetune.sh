#!/usr/bin/env bash
# Fine-tuning for retrieval on Flickr30k or COCO, from stage 2's model or newest complete checkpoint.
#
#     sbatch slurm/finetune.sh --dataset coco --data /data --from runs/stage2_cc_sbu
#
# Options, and what each reads from the environment, are at the head of common.sh.
#SBATCH --nodes=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append --output=slurm-%x-%j.out
SCRIPT=$0 TITLE=imagebert-finetune RECIPE='' TASK=finetune
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

DATASET=flickr30k
option() { # --dataset flickr30k | coco
    [[ $1 == --dataset ]] || wrong "unknown option $1; --help lists them"
    DATASET=$2
}
prepare() {
    : "${RECIPE:=finetune_$DATASET}" "${FROM:=$RUNS/stage2_cc_sbu}"
    [[ $RUN != "$RUNS/$TITLE" ]] || RUN=$RUNS/finetune_$DATASET
    REGIONS=("$DATA/$DATASET/regions") PAIRS=("$DATA/$DATASET/pairs")
}
work() { train finetune; }
main "$@"
