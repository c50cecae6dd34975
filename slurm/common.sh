# Sourced by every script here: what all share, and their options. lib/submit.sh submits, lib/job.sh is the job.
#
# A script runs twice. Called by hand it checks what can be checked here and submits itself with sbatch; as the job
# (also of `sbatch slurm/stage1.sh`) it runs. It sets TITLE, RECIPE, REGIONS and PAIRS, sources this file, and calls
# `main "$@"`, which calls its `work`.
#
# Option                Environment            Meaning
# --nodes N | N-M       IMAGEBERT_NODES        nodes; with a range the job starts, and starts again, with as many as there are
#                                              (1)
# --gpus N              IMAGEBERT_GPUS         GPUs a node, one process each; 0: none (8)
# --gres GRES                                  the same as this cluster calls them: gpu:h100:4, in place of --gpus
# --tasks N             IMAGEBERT_TASKS        processes a node, where it has no GPUs
# --cpus N              IMAGEBERT_CPUS         cores a process (8)
# --partition, --account, --qos, --time        IMAGEBERT_PARTITION, _ACCOUNT, _QOS, _TIME (24:00:00)
# --sbatch OPTION       (repeatable)           anything else for sbatch: --sbatch=--exclude=gpu07, --sbatch=--mem=0
# --srun OPTION         (repeatable)           anything else for srun: --srun=--mpi=pmix
# --bind HOW            IMAGEBERT_BIND         gpu: each process to the cores of its GPU's NUMA node; else srun's --cpu-bind:
#                                              cores, or map_ldom:0,0,1,1 for the sockets of four GPUs
# --data DIR            IMAGEBERT_DATA         folder with lait/, cc/, sbu/, flickr30k/, coco/ (data)
# --runs DIR            IMAGEBERT_RUNS         folder of all runs (runs)
# --run DIR                                    this run's folder (RUNS/name of the recipe)
# --recipe FILE         IMAGEBERT_RECIPE       another recipe in place of the script's
# --from DIR                                   run or model folder to start from
# --seeds A-B                                  a job array, a run each: RUN-seed3 has seed=3
# --local DIR           IMAGEBERT_LOCAL        node-local disk: region stores are copied there first, as far as they fit
# --container IMAGE     IMAGEBERT_CONTAINER    an image that has imagebert: run inside it, by pyxis or apptainer
# --setup FILE          IMAGEBERT_SETUP        shell file to source first: module load ..., or one of slurm/env/
# --env DIR             IMAGEBERT_ENV          virtual environment (.venv beside slurm/)
# --after JOB                                  start when that job has ended well
# --restarts N          IMAGEBERT_RESTARTS     how often a job starts its processes again on its own nodes (2)
# --chain N                                    N jobs, each to go on where the one before stopped: for clusters that do not
#                                              requeue
# --no-check                                   do not run `imagebert doctor` first
# --force                                      submit without looking first
# --dry-run                                    look, and print what would be submitted and run
# key=value                                    recipe overrides
#
# Given to sbatch itself: --nodes, --gpus-per-node or --gres, and --cpus-per-task for all processes of a node together.
# Not --ntasks-per-node: a requeued job would have to have as many nodes as at first.
#
# Exit codes of a job: 0 done; 2 the call is wrong, never requeued; 75 stopped with a checkpoint, requeued; anything
# else is a failure: the first one at a checkpoint starts the processes again on the same nodes, the second requeues the
# job, without the node that is to blame, the third ends it.
# shellcheck shell=bash

set -uo pipefail

say() { printf 'imagebert: %s\n' "$*" >&2; }
wrong() {
    say "$*"
    exit 2
}
# A command as it can be typed again.
quoted() {
    local text
    printf -v text '%q ' "$@"
    printf '%s\n' "${text% }"
}

# Whether this is a batch job's own script; called by hand in an interactive job it submits another.
in_job() { [[ -n ${SLURM_JOB_ID:-} && ${ENVIRONMENT:-} == BATCH ]]; }

# What Slurm's commands say where its controller does not answer, and not of the call.
SILENT='Unable to contact|[Tt]imed out|Connection refused|connect failure|Transport endpoint|not responding|Zero Bytes'

# A command of Slurm and its answer; where the controller does not answer it is asked again for five minutes.
patiently() {
    local until=$((SECONDS + 300)) answer errors
    errors=$(mktemp)
    while ! answer=$("$@" 2>"$errors"); do
        if ((SECONDS >= until)) || ! grep -Eq "$SILENT" "$errors"; then
            cat -- "$errors" >&2
            rm -f -- "$errors"
            return 1
        fi
        say "${1##*/} gets no answer of Slurm's controller, and is asked again"
        sleep 5
    done
    rm -f -- "$errors"
    printf '%s\n' "$answer"
}

# Slurm's way to write a time, in minutes: 90, 90:00, 1:30:00, 1-0, 1-0:30; nothing for one without end.
minutes_of() {
    local days=0 rest=$1 parts
    [[ $rest =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] || return 0
    if [[ $rest == *-* ]]; then
        days=${rest%%-*} rest=${rest#*-}
        [[ $rest == *:* ]] || rest+=:0
    elif [[ $rest == *:*:* ]]; then
        :
    elif [[ $rest == *:* ]]; then
        rest=0:$rest
    else
        rest=0:$rest:0
    fi
    IFS=: read -r -a parts <<<"$rest"
    printf '%s\n' $((10#$days * 1440 + 10#${parts[0]} * 60 + 10#${parts[1]} + (10#${parts[2]:-0} + 59) / 60))
}

# Bytes of a store, and of what is to become it.
size_of() { du -cbs -- "$1" "$1".* 2>/dev/null | tail -n 1 | cut -f 1; }

parse() {
    NODES=${IMAGEBERT_NODES:-1} GPUS=${CPU_ONLY:+0} GRES='' TASKS=${IMAGEBERT_TASKS:-} CPUS=${IMAGEBERT_CPUS:-8}
    PARTITION=${IMAGEBERT_PARTITION:-} ACCOUNT=${IMAGEBERT_ACCOUNT:-} QOS=${IMAGEBERT_QOS:-}
    TIME=${IMAGEBERT_TIME:-24:00:00} DATA=${IMAGEBERT_DATA:-data} RUNS=${IMAGEBERT_RUNS:-runs} RUN='' FROM=''
    LOCAL=${IMAGEBERT_LOCAL:-} CONTAINER=${IMAGEBERT_CONTAINER:-} SETUP=${IMAGEBERT_SETUP:-}
    VENV=${IMAGEBERT_ENV:-$IMAGEBERT_HOME/.venv} AFTER='' CHECK=1 FORCE=0 LOOKED=0 DRY=0 RECIPE=${IMAGEBERT_RECIPE:-${RECIPE:-}}
    BIND=${IMAGEBERT_BIND:-} RESTARTS=${IMAGEBERT_RESTARTS:-2} CHAIN=1 SEEDS=''
    OVERRIDES=() SBATCH=() SRUN=() MOUNTS=() COMMAND=()
    : "${GPUS:=${IMAGEBERT_GPUS:-8}}"
    local option value
    while (($#)); do
        option=$1
        shift
        case $option in
        --no-check) CHECK=0 && continue ;;
        --force) FORCE=1 && continue ;;
        --looked) LOOKED=1 && continue ;; # pipeline.sh has done it
        --dry-run) DRY=1 && continue ;;
        --help | -h)
            sed -n 's/^# \{0,1\}//p; /^# shellcheck/q' "$IMAGEBERT_HOME/slurm/common.sh"
            exit 0
            ;;
        --)
            ((${TAKES_COMMAND:-0})) || wrong "$TITLE takes nothing behind --"
            COMMAND=("$@")
            break
            ;;
        --*=*) value=${option#*=} option=${option%%=*} ;;
        --*)
            if (($# == 0)) || [[ $1 == --* && $option != --sbatch && $option != --srun ]]; then
                wrong "$option needs a value; --help lists the options"
            fi
            value=$1
            shift
            ;;
        *=*) OVERRIDES+=("$option") && continue ;;
        *) wrong "$option is neither an option nor key=value; --help lists the options" ;;
        esac
        case $option in
        --nodes) NODES=$value ;;
        --gpus) GPUS=$value ;;
        --gres) GRES=$value ;;
        --tasks) TASKS=$value ;;
        --cpus) CPUS=$value ;;
        --partition) PARTITION=$value ;;
        --account) ACCOUNT=$value ;;
        --qos) QOS=$value ;;
        --time) TIME=$value ;;
        --sbatch) SBATCH+=("$value") ;;
        --srun) SRUN+=("$value") ;;
        --bind) BIND=$value ;;
        --data) DATA=$value ;;
        --runs) RUNS=$value ;;
        --run) RUN=$value ;;
        --recipe) RECIPE=$value ;;
        --from) FROM=$value ;;
        --seeds) SEEDS=$value ;;
        --local) LOCAL=$value ;;
        --container) CONTAINER=$value ;;
        --setup) SETUP=$value ;;
        --env) VENV=$value ;;
        --after) AFTER=$value ;;
        --restarts) RESTARTS=$value ;;
        --chain) CHAIN=$value ;;
        *)
            declare -F option >/dev/null || wrong "unknown option $option; --help lists them"
            option "$option" "$value"
            ;;
        esac
    done
    [[ $NODES =~ ^[0-9]+(-[0-9]+)?$ ]] || wrong "--nodes $NODES: give a number, or a range such as 2-4"
    if [[ -n $GRES ]]; then
        [[ $GRES =~ (^|,)(gres/)?gpu(:[^:,]+)?:([0-9]+) ]] || wrong "--gres $GRES: give GPUs, as gpu:4 or gpu:h100:4"
        GPUS=${BASH_REMATCH[4]}
    fi
    for option in "--gpus $GPUS" "--cpus $CPUS" "--tasks ${TASKS:-1}" "--restarts $RESTARTS" "--chain $CHAIN"; do
        [[ $option =~ ^--[a-z]+\ [0-9]+$ ]] || wrong "$option: give a number"
    done
    ((CHAIN > 0)) || wrong "--chain 0: give the number of jobs"
    [[ -z $SEEDS || $SEEDS =~ ^[0-9]+(-[0-9]+)?$ ]] || wrong "--seeds $SEEDS: give a range such as 0-4"
    [[ -z $SEEDS || $CHAIN == 1 ]] || wrong "--seeds with --chain: give one of them"
    ((GPUS == 0)) || [[ -z $TASKS || $TASKS == "$GPUS" ]] ||
        wrong "--tasks $TASKS with --gpus $GPUS: each GPU gets one process; leave --tasks out, or give --gpus 0"
    : "${TASKS:=$((GPUS > 0 ? GPUS : 1))}"
    [[ -n $(minutes_of "$TIME") ]] || wrong "--time $TIME: give minutes, hours:minutes:seconds or days-hours"
}

main() {
    parse "$@"
    : "${RUN:=$RUNS/$(basename "${RECIPE:-$TITLE}" .yaml)}"
    if declare -F prepare >/dev/null; then prepare; fi
    if [[ -n $SEEDS ]]; then
        local seed=${SLURM_ARRAY_TASK_ID:-${SEEDS%-*}}
        RUN+=-seed$seed OVERRIDES+=("seed=$seed")
        SBATCH+=("--array=$SEEDS")
    fi
    # What a job may have, whoever submitted it: the recipe's sources and the run's folder as overrides.
    SETTINGS=("output=\"$RUN\"")
    [[ -z $FROM ]] || SETTINGS+=("model.initialize_from=\"$FROM\"")
    local number
    for number in ${REGIONS[@]+"${!REGIONS[@]}"}; do
        SETTINGS+=("data.sources.$number.regions=\"${REGIONS[number]}\"" "data.sources.$number.pairs=\"${PAIRS[number]}\"")
    done
    SETTINGS+=(${OVERRIDES[@]+"${OVERRIDES[@]}"})
    if in_job && ((!DRY)); then job; else submit "$@"; fi
}

# shellcheck source=slurm/lib/submit.sh
source "$IMAGEBERT_HOME/slurm/lib/submit.sh"
# shellcheck source=slurm/lib/job.sh
source "$IMAGEBERT_HOME/slurm/lib/job.sh"
