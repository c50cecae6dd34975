#!/usr/bin/env bash
# The whole of the paper: stage 1, stage 2, fine-tuning, evaluation; each job waits for the one before to end well.
#
#     slurm/pipeline.sh --nodes 4 --partition gpu --data /data --from /data/bert-base-uncased --dataset coco
#
# Options are those of common.sh, for all jobs alike (--from: what stage 1 starts from). `stage1:key=value`, likewise
# stage2 and finetune, is an override for that job, `stage1:--nodes=16` an option. Prints a line for each job: name, id.

JOBS=(stage1 stage2 finetune evaluate)
declare -A ONLY=()
OPTIONS=() KEYS=() FROM=() DATASET=(--dataset flickr30k) RUNS=${IMAGEBERT_RUNS:-runs} DRY=0
while (($#)); do
    case $1 in
    --from) FROM=(--from "$2") && shift ;;
    --from=*) FROM=("$1") ;;
    --dataset) DATASET=(--dataset "$2") && shift ;;
    --dataset=*) DATASET=("$1") ;;
    --runs) RUNS=$2 OPTIONS+=("$1" "$2") && shift ;;
    --runs=*) RUNS=${1#*=} OPTIONS+=("$1") ;;
    --run | --run=* | --after | --after=* | --recipe | --recipe=*)
        echo "imagebert: pipeline.sh sets ${1%%=*} itself, one for each job" >&2
        exit 2
        ;;
    stage1:* | stage2:* | finetune:* | evaluate:*) ONLY[${1%%:*}]+="${1#*:}"$'\n' ;;
    --dry-run) OPTIONS+=("$1") DRY=1 ;;
    --help | -h) exec "$(dirname "$0")/stage1.sh" --help ;;
    --no-check | --*=*) OPTIONS+=("$1") ;;
    --*) OPTIONS+=("$1" "${2-}") && shift ;;
    *) KEYS+=("$1") ;;
    esac
    shift
done

submitted=()
before=''
for job in "${JOBS[@]}"; do
    options=(${OPTIONS[@]+"${OPTIONS[@]}"})
    [[ $job == evaluate ]] || options+=(${KEYS[@]+"${KEYS[@]}"}) # a recipe's keys mean nothing to it
    case $job in
    stage1) options+=(${FROM[@]+"${FROM[@]}"}) ;;
    stage2) options+=(--from "$RUNS/stage1_lait") ;;
    finetune) options+=(--from "$RUNS/stage2_cc_sbu" "${DATASET[@]}") ;;
    evaluate) options+=(--from "$RUNS/finetune_${DATASET[-1]#--dataset=}" "${DATASET[@]}") ;;
    esac
    [[ -z $before ]] || options+=(--after "$before")
    mapfile -t -O "${#options[@]}" options < <(printf '%s' "${ONLY[$job]-}")
    id=$("$(dirname "$0")/$job.sh" "${options[@]}") || {
        ((${#submitted[@]} == 0)) || scancel "${submitted[@]}"
        echo "imagebert: $job could not be submitted; nothing of the chain is left" >&2
        exit 2
    }
    if ((DRY)); then
        printf '%s:\n%s\n' "$job" "$id"
        before=$job
    else
        printf '%-10s %s\n' "$job" "$id"
        submitted+=("$id") before=$id
    fi
done
