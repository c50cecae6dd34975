#!/usr/bin/env bash
# The whole of the paper: stage 1, stage 2, fine-tuning, evaluation; each job waits for the one before to end well.
#
#     slurm/pipeline.sh --nodes 4 --partition gpu --data /data --from /data/bert-base-uncased --dataset coco
#
# Options are those of common.sh, for all jobs alike (--from: what the first one starts from). `stage1:key=value`,
# likewise stage2 and finetune, is an override for that job, `stage1:--nodes=16` an option. `--from-stage finetune`
# begins there. A stage whose run has its model is done and is left out. All jobs are looked at before the first is
# submitted. Prints a line for each job: name, id.

HERE=$(dirname "$(readlink -f "$0")")
JOBS=(stage1 stage2 finetune evaluate)
declare -A ONLY=()
OPTIONS=() KEYS=() FROM=() DATASET=(--dataset flickr30k) RUNS=${IMAGEBERT_RUNS:-runs} DRY=0 FORCE=0 FIRST=stage1
wrong() {
    printf 'imagebert: %s\n' "$*" >&2
    exit 2
}
while (($#)); do
    case $1 in
    --from | --dataset | --runs | --from-stage) (($# > 1)) || wrong "$1 needs a value" ;;&
    --from) FROM=(--from "$2") && shift ;;
    --from=*) FROM=("$1") ;;
    --dataset) DATASET=(--dataset "$2") && shift ;;
    --dataset=*) DATASET=("$1") ;;
    --runs) RUNS=$2 OPTIONS+=("$1" "$2") && shift ;;
    --runs=*) RUNS=${1#*=} OPTIONS+=("$1") ;;
    --from-stage) FIRST=$2 && shift ;;
    --from-stage=*) FIRST=${1#*=} ;;
    --run | --run=* | --after | --after=* | --recipe | --recipe=* | --seeds | --seeds=*)
        wrong "pipeline.sh takes no ${1%%=*}: each job has its own"
        ;;
    stage1:* | stage2:* | finetune:* | evaluate:*) ONLY[${1%%:*}]+="${1#*:}"$'\n' ;;
    --dry-run) DRY=1 ;;
    --force) FORCE=1 ;;
    --help | -h) exec "$HERE/stage1.sh" --help ;;
    --no-check | --*=*) OPTIONS+=("$1") ;;
    --*) OPTIONS+=("$1" "${2-}") && shift ;;
    *) KEYS+=("$1") ;;
    esac
    shift
done
[[ " ${JOBS[*]} " == *" $FIRST "* ]] || wrong "--from-stage $FIRST: there are ${JOBS[*]}"
while [[ ${JOBS[0]} != "$FIRST" ]]; do JOBS=("${JOBS[@]:1}"); done

declare -A RUN=([stage1]=$RUNS/stage1_lait [stage2]=$RUNS/stage2_cc_sbu [finetune]=$RUNS/finetune_${DATASET[-1]#--dataset=})
left=()
for job in "${JOBS[@]}"; do
    if [[ -f ${RUN[$job]-}/model/config.json ]]; then
        echo "imagebert: $job is done: ${RUN[$job]} has its model" >&2
    else
        left+=("$job")
    fi
done

# One job's options, in `options`; the second word is what it waits for.
options_of() {
    options=(${OPTIONS[@]+"${OPTIONS[@]}"})
    [[ $1 == evaluate ]] || options+=(${KEYS[@]+"${KEYS[@]}"}) # a recipe's keys mean nothing to it
    case $1 in
    stage2) options+=(--from "${RUN[stage1]}") ;;
    finetune) options+=(--from "${RUN[stage2]}" "${DATASET[@]}") ;;
    evaluate) options+=(--from "${RUN[finetune]}" "${DATASET[@]}") ;;
    esac
    [[ $1 != "$FIRST" ]] || options+=(${FROM[@]+"${FROM[@]}"})
    [[ -z $2 ]] || options+=(--after "$2")
    mapfile -t -O "${#options[@]}" options < <(printf '%s' "${ONLY[$1]-}")
}

# All are looked at, side by side; a dry run prints them, too.
looks=$(mktemp -d)
trap 'rm -rf -- "$looks"' EXIT
before=''
for job in "${left[@]}"; do
    options_of "$job" "$before"
    ((!FORCE)) || options+=(--force)
    "$HERE/$job.sh" "${options[@]}" --dry-run >"$looks/$job" 2>"$looks/$job.errors" || touch "$looks/$job.wrong" &
    before=$job
done
wait
failed=0
for job in "${left[@]}"; do
    ((!DRY)) || printf '%s:\n%s\n' "$job" "$(<"$looks/$job")"
    [[ ! -s $looks/$job.errors ]] || sed "s/^imagebert:/imagebert: $job:/" "$looks/$job.errors" >&2
    [[ ! -e $looks/$job.wrong ]] || failed=1
done
((!failed)) || wrong "no job of the chain is submitted"
((!DRY)) || exit 0

submitted=() before=''
for job in "${left[@]}"; do
    options_of "$job" "$before"
    ((FORCE)) && options+=(--force) || options+=(--looked)
    id=$("$HERE/$job.sh" "${options[@]}") || {
        ((${#submitted[@]} == 0)) || scancel "${submitted[@]}"
        wrong "$job could not be submitted; nothing of the chain is left"
    }
    printf '%-10s %s\n' "$job" "$id"
    mapfile -t -d '?' ids < <(printf '%s' "$id")
    submitted+=("${ids[@]}") before=$id
done
