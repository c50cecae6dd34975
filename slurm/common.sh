# Sourced by every script here: options, environment, rendezvous, checks, staging, container, launch and requeue.
#
# A script runs twice. Called by hand it submits itself with sbatch, with what its options say; as the job (also of
# `sbatch slurm/stage1.sh`) it runs. It sets TITLE, RECIPE, REGIONS and PAIRS, sources this file, and calls `main "$@"`,
# which calls its `work`.
#
# Option                Environment            Meaning
# --nodes N | N-M       IMAGEBERT_NODES        nodes; with a range the job starts, and starts again, with as many as there are
#                                              (1)
# --gpus N              IMAGEBERT_GPUS         GPUs a node, one process each; 0: none (8)
# --tasks N             IMAGEBERT_TASKS        processes a node, where it has no GPUs
# --cpus N              IMAGEBERT_CPUS         cores a process (8)
# --partition, --account, --qos, --time        IMAGEBERT_PARTITION, _ACCOUNT, _QOS, _TIME (24:00:00)
# --sbatch OPTION       (repeatable)           anything else for sbatch: --sbatch=--exclude=gpu07, --sbatch=--mem=0, or
#                                              --sbatch=--gpus-per-node=h100:8 where GPUs have types
# --data DIR            IMAGEBERT_DATA         folder with lait/, cc/, sbu/, flickr30k/, coco/ (data)
# --runs DIR            IMAGEBERT_RUNS         folder of all runs (runs)
# --run DIR                                    this run's folder (RUNS/name of the recipe)
# --recipe FILE         IMAGEBERT_RECIPE       another recipe in place of the script's
# --from DIR                                   run or model folder to start from
# --local DIR           IMAGEBERT_LOCAL        node-local disk: region stores are copied there first, as far as they fit
# --container IMAGE     IMAGEBERT_CONTAINER    an image that has imagebert: run inside it, by pyxis or apptainer
# --setup FILE          IMAGEBERT_SETUP        shell file to source first: module load ..., export NCCL_SOCKET_IFNAME=...
# --env DIR             IMAGEBERT_ENV          virtual environment (.venv beside slurm/)
# --after JOB                                  start when that job has ended well
# --no-check                                   do not run `imagebert doctor` first
# --dry-run                                    print what would be submitted and run
# key=value                                    recipe overrides
#
# Given to sbatch itself: --nodes, --gpus-per-node, and --cpus-per-task for all processes of a node together. Not
# --ntasks-per-node: a requeued job would have to have as many nodes as at first.
#
# Exit codes of a job: 0 done; 2 the call is wrong, never requeued; 75 stopped with a checkpoint, requeued; anything
# else is requeued too, unless the run has failed three times at the same checkpoint.
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

parse() {
    NODES=${IMAGEBERT_NODES:-1} GPUS=${IMAGEBERT_GPUS:-8} TASKS=${IMAGEBERT_TASKS:-} CPUS=${IMAGEBERT_CPUS:-8}
    PARTITION=${IMAGEBERT_PARTITION:-} ACCOUNT=${IMAGEBERT_ACCOUNT:-} QOS=${IMAGEBERT_QOS:-}
    TIME=${IMAGEBERT_TIME:-24:00:00} DATA=${IMAGEBERT_DATA:-data} RUNS=${IMAGEBERT_RUNS:-runs} RUN='' FROM=''
    LOCAL=${IMAGEBERT_LOCAL:-} CONTAINER=${IMAGEBERT_CONTAINER:-} SETUP=${IMAGEBERT_SETUP:-}
    VENV=${IMAGEBERT_ENV:-$IMAGEBERT_HOME/.venv} AFTER='' CHECK=1 DRY=0 RECIPE=${IMAGEBERT_RECIPE:-${RECIPE:-}}
    OVERRIDES=() SBATCH=() MOUNTS=()
    local option value
    while (($#)); do
        option=$1
        shift
        case $option in
        --no-check) CHECK=0 && continue ;;
        --dry-run) DRY=1 && continue ;;
        --help | -h)
            sed -n 's/^# \{0,1\}//p; /^# shellcheck/q' "$IMAGEBERT_HOME/slurm/common.sh"
            exit 0
            ;;
        --*=*) value=${option#*=} option=${option%%=*} ;;
        --*)
            if (($# == 0)) || [[ $1 == --* && $option != --sbatch ]]; then
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
        --tasks) TASKS=$value ;;
        --cpus) CPUS=$value ;;
        --partition) PARTITION=$value ;;
        --account) ACCOUNT=$value ;;
        --qos) QOS=$value ;;
        --time) TIME=$value ;;
        --sbatch) SBATCH+=("$value") ;;
        --data) DATA=$value ;;
        --runs) RUNS=$value ;;
        --run) RUN=$value ;;
        --recipe) RECIPE=$value ;;
        --from) FROM=$value ;;
        --local) LOCAL=$value ;;
        --container) CONTAINER=$value ;;
        --setup) SETUP=$value ;;
        --env) VENV=$value ;;
        --after) AFTER=$value ;;
        *)
            declare -F option >/dev/null || wrong "unknown option $option; --help lists them"
            option "$option" "$value"
            ;;
        esac
    done
    [[ $NODES =~ ^[0-9]+(-[0-9]+)?$ ]] || wrong "--nodes $NODES: give a number, or a range such as 2-4"
    for option in "--gpus $GPUS" "--cpus $CPUS" "--tasks ${TASKS:-1}"; do
        [[ $option =~ ^--[a-z]+\ [0-9]+$ ]] || wrong "$option: give a number"
    done
    ((GPUS == 0)) || [[ -z $TASKS || $TASKS == "$GPUS" ]] ||
        wrong "--tasks $TASKS with --gpus $GPUS: each GPU gets one process; leave --tasks out, or give --gpus 0"
    : "${TASKS:=$((GPUS > 0 ? GPUS : 1))}"
}

main() {
    parse "$@"
    : "${RUN:=$RUNS/$(basename "${RECIPE:-$TITLE}" .yaml)}"
    if declare -F prepare >/dev/null; then prepare; fi
    # What a job may have, whoever submitted it: the recipe's sources and the run's folder as overrides.
    SETTINGS=("output=\"$RUN\"")
    [[ -z $FROM ]] || SETTINGS+=("model.initialize_from=\"$FROM\"")
    local number
    for number in "${!REGIONS[@]}"; do
        SETTINGS+=("data.sources.$number.regions=\"${REGIONS[number]}\"" "data.sources.$number.pairs=\"${PAIRS[number]}\"")
    done
    SETTINGS+=(${OVERRIDES[@]+"${OVERRIDES[@]}"})
    if in_job && ((!DRY)); then job; else submit "$@"; fi
}

# ------------------------------------------------------------------------------------------------------- submitting

submit() {
    local command=(sbatch --parsable "--job-name=$TITLE" "--nodes=$NODES" "--gpus-per-node=$GPUS"
        "--cpus-per-task=$((CPUS * ${STEP_TASKS:-$TASKS}))" "--time=$TIME" --export=ALL)
    [[ -z $PARTITION ]] || command+=("--partition=$PARTITION")
    [[ -z $ACCOUNT ]] || command+=("--account=$ACCOUNT")
    [[ -z $QOS ]] || command+=("--qos=$QOS")
    [[ -z $AFTER ]] || command+=("--dependency=afterok:$AFTER" --kill-on-invalid-dep=yes)
    command+=(${SBATCH[@]+"${SBATCH[@]}"} "$SCRIPT" "$@")
    if ((DRY)); then
        quoted "${command[@]}"
        work
        return
    fi
    export IMAGEBERT_HOME
    local id name
    for name in "${!SLURM_@}"; do # of an interactive job that this was called in
        [[ $name == SLURM_CONF ]] || unset "$name"
    done
    unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK
    id=$("${command[@]}") || wrong "sbatch refused the job; its own message is above"
    printf '%s\n' "${id%%;*}"
}

# ------------------------------------------------------------------------------------------------------- in the job

job() {
    DRY=0
    trap : TERM USR1 # Slurm tells the processes themselves; this shell has to stay for what comes after
    environment
    mkdir -p -- "$RUN" || say "cannot make $RUN"
    check
    if work; then
        rm -f -- "$RUN/.slurm-failures${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}"
        exit 0
    else
        finish $?
    fi
}

environment() {
    cd "${SLURM_SUBMIT_DIR:-.}" || wrong "cannot enter $SLURM_SUBMIT_DIR"
    set +u # what is sourced may not mind it
    # shellcheck disable=SC1090
    [[ -z $SETUP ]] || source "$SETUP" || wrong "--setup $SETUP failed"
    if [[ -z $CONTAINER && ($VENV != "$IMAGEBERT_HOME/.venv" || -d $VENV) ]]; then
        [[ -f $VENV/bin/activate ]] || wrong "--env $VENV is no virtual environment on $(hostname)"
        # shellcheck disable=SC1091
        source "$VENV/bin/activate"
    fi
    set -u
    # One process a GPU; without GPUs as many as were asked for.
    local gpus=${SLURM_GPUS_ON_NODE:-0}
    ((gpus > 0 || GPUS == 0)) || wrong "this job has no GPUs: submit with --gpus-per-node=N, or give --gpus 0 --tasks N"
    [[ -n ${STEP_TASKS:-} ]] || ((gpus == 0)) || TASKS=$gpus
    NODES=${SLURM_JOB_NUM_NODES:-1}
    # Ranks meet on the first node; a requeued job keeps its number, so the port follows its attempts.
    MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
    MASTER_PORT=${MASTER_PORT:-$((20000 + (SLURM_JOB_ID + 101 * ${SLURM_RESTART_COUNT:-0}) % 20000))}
    export MASTER_ADDR MASTER_PORT
    CPUS=$((${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}} / ${STEP_TASKS:-$TASKS}))
    ((CPUS > 0)) || CPUS=1
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS} PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
    # A rank that loses another one ends instead of waiting for ever; NCCL says what it minds.
    export TORCH_NCCL_ASYNC_ERROR_HANDLING=1 NCCL_DEBUG=${NCCL_DEBUG:-WARN}
}

check() {
    local tasks=${SLURM_NTASKS_PER_NODE:-$TASKS} number folder
    tasks=${tasks%%[!0-9]*}
    [[ -n ${STEP_TASKS:-} ]] || ((tasks == TASKS)) ||
        wrong "a node has $TASKS GPUs and $tasks tasks: leave --ntasks-per-node out, each GPU gets one process"
    for number in ${REGIONS[@]+"${!REGIONS[@]}"}; do
        for folder in "${REGIONS[number]}" "${PAIRS[number]}"; do
            [[ ! -f $folder/meta.json ]] || continue
            ((${SLURM_RESTART_COUNT:-0} == 0)) ||
                { say "$(hostname) does not see $folder, which was there before" && finish 1; }
            wrong "there is no store at $folder (seen from $(hostname)): make it, or give --data DIR"
        done
    done
    [[ -n $CONTAINER ]] || command -v imagebert >/dev/null ||
        wrong "no imagebert on $(hostname): give --env DIR (a virtual environment), --setup FILE or --container IMAGE"
    say "job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)): $NODES nodes ($SLURM_JOB_NODELIST)," \
        "${STEP_TASKS:-$TASKS} processes each"
}

# Runs a command as the job's processes; `--once` on one of them, `--each-node` once a node.
launch() {
    local nodes=${NODES##*-} tasks=${STEP_TASKS:-$TASKS}
    local how=("--nodes=$nodes" "--ntasks=$((nodes * tasks))" "--ntasks-per-node=$tasks")
    case $1 in
    --once) how=(--nodes=1 --ntasks=1 --ntasks-per-node=1) && shift ;;
    --each-node) how=("--nodes=$nodes" "--ntasks=$nodes" --ntasks-per-node=1 --wait=0) && shift ;;
    esac
    # Ranks end by themselves when one is gone; what has not after 10 s is killed. Not at once: a rank that is killed
    # while it ends with 75 or 2, as all do then, would hide that.
    local command=(srun --export=ALL --kill-on-bad-exit=0 --wait=10 "${how[@]}" "--cpus-per-task=$CPUS") inside=()
    if [[ -n $CONTAINER ]]; then
        local mounts='' folder
        for folder in "$IMAGEBERT_HOME" "$PWD" "$DATA" "$RUN" ${FROM:+"$FROM"} ${LOCAL:+"$LOCAL"} \
            ${MOUNTS[@]+"${MOUNTS[@]}"}; do
            folder=$(realpath -m -- "$folder")
            [[ ,$mounts, == *",$folder:$folder,"* ]] || mounts+=${mounts:+,}$folder:$folder
        done
        : "${PYXIS:=$(srun --help 2>/dev/null | grep -c -- --container-image)}"
        if ((PYXIS)); then
            command+=("--container-image=$CONTAINER" "--container-mounts=$mounts" "--container-workdir=$PWD")
        elif command -v apptainer >/dev/null || ((DRY)); then
            inside=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$CONTAINER")
        else
            wrong "--container $CONTAINER: this cluster has neither pyxis nor apptainer"
        fi
    fi
    if ((DRY)); then
        quoted "${command[@]}" ${inside[@]+"${inside[@]}"} "$@"
        return
    fi
    "${command[@]}" ${inside[@]+"${inside[@]}"} "$@"
}

# Checks the machines, copies stores to local disks, trains.
train() { # pretrain | finetune
    local number name
    if [[ -n $FROM && ! -f $FROM/config.json && ! -f $FROM/model/config.json ]]; then
        # A run that has not ended: its newest complete checkpoint.
        launch --once imagebert export "$FROM" || return
    fi
    if ((CHECK)); then
        launch imagebert doctor --quick "$RECIPE" "${SETTINGS[@]}" || return
    fi
    if [[ -n $LOCAL ]]; then
        for number in "${!REGIONS[@]}"; do
            name=$(basename "$(dirname "${REGIONS[number]}")")-$(basename "${REGIONS[number]}")
            launch --each-node imagebert store stage "${REGIONS[number]}" "$LOCAL/$name" --as-fits || return
            SETTINGS+=("data.sources.$number.regions=\"$LOCAL/$name\"")
        done
    fi
    launch imagebert "$1" "$RECIPE" "${SETTINGS[@]}"
}

# Ends a job that did not: requeued where that can help.
finish() {
    local code=$1 newest before='' failures=0 id=$SLURM_JOB_ID counter=$RUN/.slurm-failures
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then # one of its tasks has the number of the whole array
        id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID counter+=-$SLURM_ARRAY_TASK_ID
    fi
    ((code != 2)) || wrong "the call is wrong, see above: not requeued"
    if ((code != 75)); then
        # How far it has come: the newest checkpoint, or what the script says.
        if declare -F progress >/dev/null; then
            newest=$(progress)
        else
            newest=$(find "$RUN/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1)
        fi
        read -r failures before 2>/dev/null <"$counter" || failures=0
        [[ $before == "${newest##*/}" ]] || failures=0
        failures=$((failures + 1))
        # Where that cannot be written down, Slurm's own count has to do.
        printf '%s %s\n' "$failures" "${newest##*/}" 2>/dev/null >"$counter" || failures=$((${SLURM_RESTART_COUNT:-0} + 1))
        if ((failures >= 3)); then
            say "failed with $code for the third time at the same checkpoint (${newest##*/}): not requeued"
            exit "$code"
        fi
    fi
    if [[ $(scontrol -o show job "$id" 2>/dev/null) != *" JobState=RUNNING "* ]]; then
        say "ended with $code: Slurm has ended the job (cancelled, say); submit again, it goes on from the newest checkpoint"
        exit "$code"
    fi
    say "ended with $code: requeued, to go on from the newest checkpoint"
    scontrol requeue "$id" || say "and Slurm refused that: submit again, it goes on"
    exit "$code"
}
