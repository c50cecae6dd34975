#!/usr/bin/env bash
# Published region features to a region store; what stands behind -- goes to `imagebert import` as it is.
#
#     slurm/import.sh --nodes 2 --tasks 8 --out /data/cc/regions -- auto /data/cc/features.lmdb
#
# Options, and what each reads from the environment, are at the head of common.sh.
#SBATCH --nodes=1 --cpus-per-task=8
#SBATCH --time=12:00:00 --signal=USR1@300 --requeue --open-mode=append --output=slurm-%x-%j.out
SCRIPT=$0 TITLE=imagebert-import RECIPE='' CPU_ONLY=1 TAKES_COMMAND=1
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

OUT='' REGIONS=() PAIRS=()
option() { # --out STORE
    [[ $1 == --out ]] || wrong "unknown option $1; --help lists them"
    OUT=$2
}
prepare() {
    [[ -n $OUT && ${#COMMAND[@]} -gt 1 ]] || wrong "give --out STORE, and behind -- the format and what is read"
    RUN=$(dirname "$OUT") WRITES=$OUT
}
progress() { size_of "$OUT"; }
work() { launch imagebert import "${COMMAND[@]}" "$OUT"; }
main "$@"
