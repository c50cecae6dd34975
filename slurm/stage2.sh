#!/usr/bin/env bash
# Stage 2 of pre-training: Conceptual Captions and SBU, from stage 1's model or newest complete checkpoint.
#
#     sbatch --nodes=4 slurm/stage2.sh --data /data --from runs/stage1_lait
#
# Options, and what each reads from the environment, are at the head of common.sh.
#SBATCH --nodes=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append --output=slurm-%x-%j.out
SCRIPT=$0 TITLE=imagebert-stage2 RECIPE=stage2_cc_sbu TASK=pretrain
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

prepare() {
    REGIONS=("$DATA/cc/regions" "$DATA/sbu/regions") PAIRS=("$DATA/cc/pairs" "$DATA/sbu/pairs")
    : "${FROM:=$RUNS/stage1_lait}"
}
work() { train pretrain; }
main "$@"
