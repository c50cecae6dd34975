#!/usr/bin/env bash
# Web archives to pairs (LAIT), all ranks sharing the work; what stands behind -- goes to `imagebert lait build` as it is.
#
#     slurm/lait.sh --nodes 8 --tasks 2 --cpus 32 --crawl /data/crawl --out /data/lait/build -- --archived filter.side=200
#
# A rank does --cpus files at once. Options, and what each reads from the environment, are at the head of common.sh.
#SBATCH --nodes=1 --cpus-per-task=8
#SBATCH --time=24:00:00 --signal=USR1@300 --requeue --open-mode=append --output=slurm-%x-%j.out
SCRIPT=$0 TITLE=imagebert-lait RECIPE='' CPU_ONLY=1 TAKES_COMMAND=1
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

CRAWL='' OUT='' REGIONS=() PAIRS=()
option() { # --crawl DIR|WARC, --out DIR
    case $1 in
    --crawl) CRAWL=$2 ;;
    --out) OUT=$2 ;;
    *) wrong "unknown option $1; --help lists them" ;;
    esac
}
prepare() {
    [[ -e $CRAWL && -n $OUT ]] || wrong "give --crawl FOLDER|WARC and --out FOLDER"
    RUN=$(dirname "$OUT") WRITES=$OUT MOUNTS=("$CRAWL")
}
progress() { size_of "$OUT"; }
work() {
    launch imagebert lait build "$CRAWL" "$OUT" --processes "$CPUS" ${COMMAND[@]+"${COMMAND[@]}"} \
        ${OVERRIDES[@]+"${OVERRIDES[@]}"}
}
main "$@"
