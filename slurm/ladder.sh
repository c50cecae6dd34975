#!/usr/bin/env bash
# An ablation of the paper: a job array trains the rungs of a ladder, a seed each; a job behind it prints the table.
#
#     slurm/ladder.sh --ladder table3 --data /data --out runs/table3 --seeds 0-2
#
# Options, and what each reads from the environment, are at the head of common.sh.
#SBATCH --nodes=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append --output=slurm-%x-%j.out
SCRIPT=$0 TITLE=imagebert-ladder RECIPE=''
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

LADDER=table3 OUT='' TABLE=0 REGIONS=() PAIRS=() WRITES=
option() { # --ladder NAME, --out DIR, and --table N for the last job
    case $1 in
    --ladder) LADDER=$2 ;;
    --out) OUT=$2 ;;
    --table) TABLE=$2 ;;
    *) wrong "unknown option $1; --help lists them" ;;
    esac
}
prepare() {
    : "${OUT:=$RUNS/$(basename "$LADDER" .yaml)}" "${SEEDS:=0}"
    [[ ${SEEDS%-*} == 0 || $SEEDS == 0 ]] || wrong "--seeds $SEEDS: a ladder's seeds begin with 0"
    LAST=${SEEDS#*-} RUN=$OUT
    ((TABLE)) || SBATCH+=("--array=$SEEDS")
    SEEDS='' # each seed has a folder of its own in OUT
}
progress() { find "$OUT" -name 'step-*' 2>/dev/null | wc -l; }
work() {
    local ladder=(imagebert ladder "$LADDER" --data "$DATA" --out "$OUT" --seeds "$((LAST + 1))")
    ((TABLE)) || ladder+=(--seed "${SLURM_ARRAY_TASK_ID:-0}")
    launch "${ladder[@]}" ${OVERRIDES[@]+"${OVERRIDES[@]}"}
}
if in_job || [[ " $* " == *" --table"* || " $* " == *" --help "* ]]; then
    main "$@"
else
    first=$(main "$@") || exit
    printf '%s\n' "$first"
    [[ " $* " == *" --dry-run "* ]] && first=ARRAY
    main "$@" --table 1 --after "$first"
fi
