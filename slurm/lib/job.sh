# The job: environment, checks, launch, restarts, and what becomes of it at its end.
# shellcheck shell=bash

job() {
    DRY=0 ASKED=0
    WORDS=$(mktemp) # what a step's processes and srun said of their end
    trap ASKED=1 TERM USR1 # Slurm tells the processes themselves; this shell has to stay for what comes after
    ID=$SLURM_JOB_ID
    # One of an array's tasks has the number of the whole array.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || ID=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    ATTEMPT=$((${SLURM_RESTART_COUNT:-0} + 1)) LAUNCHES=0
    STATE=$RUN/.slurm${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID} # and what it is: failures, bad-nodes
    # As many nodes as it needs: the fewest of --nodes, or what sbatch was asked for.
    [[ -n ${IMAGEBERT_SUBMITTED:-} ]] && FEWEST=${NODES%-*} || FEWEST=${SLURM_JOB_NUM_NODES:-1}
    NODES=${SLURM_JOB_NUM_NODES:-1}
    environment
    mkdir -p -- "$RUN" || say "cannot make $RUN"
    check
    if work; then
        rm -f -- "$STATE-failures" "$WORDS"
        exit 0
    else
        finish $?
    fi
}

environment() {
    cd "${SLURM_SUBMIT_DIR:-.}" || fault "cannot enter $SLURM_SUBMIT_DIR"
    unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK # of the shell that called sbatch; --setup may set them
    set +u # what is sourced may not mind it
    # shellcheck disable=SC1090
    if [[ -n $SETUP ]]; then
        [[ -r $SETUP ]] || missing "--setup $SETUP"
        source "$SETUP" || wrong "--setup $SETUP failed"
    fi
    if [[ -z $CONTAINER && ($VENV != "$IMAGEBERT_HOME/.venv" || -d $VENV) ]]; then
        [[ -f $VENV/bin/activate ]] || missing "--env $VENV"
        # shellcheck disable=SC1091
        source "$VENV/bin/activate"
    fi
    set -u
    if [[ -z $CONTAINER && -f $IMAGEBERT_HOME/imagebert/__init__.py ]]; then
        export PYTHONPATH=$IMAGEBERT_HOME:$IMAGEBERT_HOME/kernels${PYTHONPATH:+:$PYTHONPATH}
    fi
    # One process a GPU; without GPUs as many as were asked for.
    local gpus=${SLURM_GPUS_ON_NODE:-0}
    ((gpus > 0 || GPUS == 0)) || wrong "this job has no GPUs: submit with --gpus-per-node=N, or give --gpus 0 --tasks N"
    [[ -n ${STEP_TASKS:-} ]] || ((gpus == 0)) || TASKS=$gpus
    unset SLURM_GPUS_PER_NODE # the script's own, where sbatch was given --gres: steps take what the job has
    # Ranks meet on the first node.
    MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
    CPUS=$((${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}} / ${STEP_TASKS:-$TASKS}))
    ((CPUS > 0)) || CPUS=1
    [[ $BIND != gpu ]] || export IMAGEBERT_BIND=gpu
    export MASTER_ADDR OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS} PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
    # A rank that loses another one ends instead of waiting for ever; NCCL says what it minds.
    export TORCH_NCCL_ASYNC_ERROR_HANDLING=1 NCCL_DEBUG=${NCCL_DEBUG:-WARN}
}

# This machine is at fault, not the call.
fault() {
    printf 'imagebert: fault on %s: %s\n' "${SLURMD_NODENAME:-$(hostname)}" "$*" | tee -a -- "$WORDS" >&2
    finish 1
}

# What is not there was there at submission, or in an attempt before: then this machine does not see it.
missing() {
    if [[ -n ${IMAGEBERT_SUBMITTED:-} && $FORCE == 0 ]] || ((${SLURM_RESTART_COUNT:-0} > 0)); then
        fault "$1 is not there, and was"
    fi
    wrong "$1 is not there, seen from $(hostname)"
}

check() {
    local tasks=${SLURM_NTASKS_PER_NODE:-$TASKS} number folder limit
    tasks=${tasks%%[!0-9]*}
    [[ -n ${STEP_TASKS:-} ]] || ((tasks == TASKS)) ||
        wrong "a node has $TASKS GPUs and $tasks tasks: leave --ntasks-per-node out, each GPU gets one process"
    limit=$(minutes_of "$(squeue --noheader --job "$SLURM_JOB_ID" --format=%l 2>/dev/null)")
    [[ -n ${IMAGEBERT_SUBMITTED:-} || -z $limit ]] || ((limit * 60 > NOTICE + 60)) ||
        wrong "--time is $limit minutes, and $((NOTICE / 60)) before its end the job is asked to stop: give more, or" \
            "--signal=USR1@60 to sbatch, or call slurm/$(basename "$SCRIPT") itself"
    for number in ${REGIONS[@]+"${!REGIONS[@]}"}; do
        for folder in "${REGIONS[number]}" "${PAIRS[number]}"; do
            [[ -f $folder/meta.json ]] || missing "the store $folder"
        done
    done
    [[ -n $CONTAINER ]] || command -v imagebert >/dev/null ||
        wrong "no imagebert on $(hostname): give --env DIR (a virtual environment), --setup FILE or --container IMAGE"
    say "$(date '+%F %T') job $ID, attempt $ATTEMPT: $NODES nodes ($SLURM_JOB_NODELIST)," \
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
    case $BIND in
    '') ;;
    gpu) command+=(--cpu-bind=none) ;; # each process binds itself, once it knows its GPU
    *) command+=("--cpu-bind=$BIND") ;;
    esac
    command+=(${SRUN[@]+"${SRUN[@]}"})
    if [[ -n $CONTAINER ]]; then
        local mounts='' folder
        for folder in "$IMAGEBERT_HOME" "$PWD" "$DATA" "$RUN" ${FROM:+"$FROM"} ${LOCAL:+"$LOCAL"} \
            ${MOUNTS[@]+"${MOUNTS[@]}"}; do
            mount "$folder"
        done
        # data/lait may lead elsewhere, and data/lait/regions.
        for folder in "$DATA"/* "$DATA"/*/*; do
            [[ ! -L $folder ]] || mount "$folder"
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
    # A requeued job keeps its number, and a step must not meet what is left of the one before.
    LAUNCHES=$((LAUNCHES + 1))
    local port=${MASTER_PORT:-$((20000 + (SLURM_JOB_ID + 101 * (ATTEMPT - 1) + 17 * LAUNCHES) % 20000))} code until ear listener
    until=$((SECONDS + 300))
    while :; do
        exec {ear}> >(listen)
        listener=$!
        MASTER_PORT=$port "${command[@]}" ${inside[@]+"${inside[@]}"} "$@" 2>&"$ear"
        code=$?
        exec {ear}>&-
        wait "$listener"
        ((code != 0 && ASKED == 0 && SECONDS < until)) || break
        # It began nothing, for want of an answer.
        grep -Eq "^srun: error: Unable to (create step|confirm allocation).*($SILENT)" "$WORDS" || break
        say "Slurm's controller does not answer, and is asked again"
        sleep 5
    done
    # Who is asked to stop and does not know how to, or not yet, did not fail.
    ((code == 0 || code == 2)) || [[ $(killed) != *"User defined signal 1"* ]] || code=75
    return "$code"
}

# Adds a folder to `mounts`, and where it leads to.
mount() {
    local place
    for place in "$(realpath -ms -- "$1")" "$(realpath -m -- "$1")"; do
        [[ ,$mounts, == *",$place:$place,"* ]] || mounts+=${mounts:+,}$place:$place
    done
}

# Passes on what a step's processes say, and keeps what they and srun say of their end.
listen() {
    sed -u -E "/^(srun|slurmstepd[^:]*): |imagebert: (fault on|cause:)/w $WORDS" >&2
}

# Checks the machines, copies stores to local disks, trains.
train() { # pretrain | finetune
    local number name store code restarts=0
    if [[ -n $FROM && ! -f $FROM/config.json && ! -f $FROM/model/config.json ]]; then
        # A run that has not ended: its newest complete checkpoint.
        launch --once imagebert export "$FROM" || return
    fi
    if ((CHECK)); then
        launch imagebert doctor --quick "--task=$1" ${LOCAL:+"--local=$LOCAL"} "$RECIPE" "${SETTINGS[@]}" || return
    fi
    if [[ -n $LOCAL ]]; then
        for number in "${!REGIONS[@]}"; do
            store=${REGIONS[number]}
            # Two stores of one name, of two jobs, are two copies.
            name=$(basename "$(dirname "$store")")-$(basename "$store")$(sha256sum "$store/meta.json" 2>/dev/null | cut -c 1-8)
            launch --each-node imagebert store localise "$store" "$LOCAL/$name" --as-fits || return
            SETTINGS+=("data.sources.$number.regions=\"$LOCAL/$name\"")
        done
    fi
    while :; do
        launch imagebert "$1" "$RECIPE" "${SETTINGS[@]}" && return
        code=$?
        ((code != 2 && code != 75 && restarts < RESTARTS)) || return "$code"
        count_failure
        ((FAILURES == 1 && ASKED == 0)) && answer || return "$code"
        restarts=$((restarts + 1)) FAILURES=''
        say "$(why "$code")"
        say "starts its processes again on the same nodes, to go on from the newest checkpoint"
    done
}

# Whether all nodes are there; where Slurm's controller is away it is asked again, as in `launch`.
answer() {
    local until=$((SECONDS + 300)) said
    while ! said=$(timeout 60 srun --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 --cpus-per-task=1 true 2>&1); do
        ((ASKED == 0 && SECONDS < until)) && grep -Eq "$SILENT" <<<"$said" || return 1
        say "Slurm's controller does not answer, and is asked again"
        sleep 5
    done
}

# ------------------------------------------------------------------------------------------------------------ its end

# FAILURES: how many there were since the newest checkpoint, which is NEWEST.
count_failure() {
    local before=''
    # How far it has come: the newest checkpoint, or what the script says.
    if declare -F progress >/dev/null; then
        NEWEST=$(progress)
    else
        NEWEST=$(find "$RUN/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1)
    fi
    NEWEST=${NEWEST##*/} FAILURES=0
    read -r FAILURES before 2>/dev/null <"$STATE-failures" || FAILURES=0
    [[ $before == "$NEWEST" ]] || FAILURES=0
    FAILURES=$((FAILURES + 1))
    # Where that cannot be written down, Slurm's own count has to do.
    { printf '%s %s\n' "$FAILURES" "$NEWEST" >"$STATE-failures"; } 2>/dev/null || FAILURES=$ATTEMPT
}

# Of the step's end: a line for each task that a signal ended, before srun itself ended what was left.
killed() {
    sed '/Timed out waiting\|STEP .* ON .* CANCELLED/,$d' "$WORDS" | sed -nE \
        's/^srun: error: ([^ :,[]+): task ([0-9]+): (Killed|Segmentation fault|Bus error|Aborted|Floating point exception|Illegal instruction|Terminated|User defined signal 1).*/\1 \2 \3/p'
}

# A sentence on why a step ended with a code.
why() {
    local host task signal
    if read -r host task signal < <(killed); then
        printf 'rank %s on %s was ended by a signal: %s\n' "$task" "$host" "$signal"
    elif grep -q 'imagebert: fault on' "$WORDS"; then
        sed -n 's/.*imagebert: \(fault on .*\)/\1/p' "$WORDS" | tail -n 1
    elif grep -q 'imagebert: cause: ' "$WORDS"; then
        # Survivors only say that they have lost another one.
        sed -n 's/.*imagebert: cause: //p' "$WORDS" | sort -t: -k2 -s | awk '/lost another/ { l = $0; next } { print; f = 1; exit } END { if (!f) print l }'
    else
        printf 'it ended with %s, its own message is above\n' "$1"
    fi
}

# Nodes that this end points at: by a sentence, or, the second time, by the rank that died.
blamed() {
    {
        sed -n 's/.*imagebert: fault on \([^ :]*\): .*/\1/p' "$WORDS"
        ((FAILURES < 2)) || killed | cut -d ' ' -f 1
    } | sort -u
}

# Nodes that were blamed in the last hour; a fault may be mended.
bad_nodes() {
    local hour=$(($(date +%s) - 3600))
    awk -v hour="$hour" '$1 >= hour { print $2 }' "$STATE-bad-nodes" 2>/dev/null | sort -u
}

# Keeps the requeued job away from bad nodes, where it is left enough others.
exclude() {
    local node bad theirs=() left
    for node in $(blamed); do printf '%s %s\n' "$(date +%s)" "$node" >>"$STATE-bad-nodes"; done
    mapfile -t bad < <(bad_nodes)
    ((${#bad[@]})) || return 0
    # Those that the user left out stay out; ours of more than an hour ago may come back.
    node=$(patiently scontrol -o show job "$ID" | sed -n 's/.* ExcNodeList=\([^ (]*\).*/\1/p')
    [[ -z $node ]] || mapfile -t theirs < <(scontrol show hostnames "$node" | grep -vxF -f <(cut -d ' ' -f 2 "$STATE-bad-nodes"))
    bad+=(${theirs[@]+"${theirs[@]}"})
    left=$(patiently sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format=%N \
        --states=idle,alloc,mix,comp,resv,planned | sort -u | grep -vxFc -f <(printf '%s\n' "${bad[@]}"))
    if ((left < FEWEST)); then
        say "without ${bad[*]} too few nodes are left: it may be taken again"
        return
    fi
    EXCLUDE=$(IFS=, && printf %s "${bad[*]}")
    say "$EXCLUDE is left out of the next attempt"
}

# One line a job's end, for whoever looks later.
record() { # code, sentence
    local text=${2//[\"\\$'\n'$'\t']/ }
    printf '{"event": "end", "time": "%s", "job": "%s", "attempt": %s, "exit": %s, "why": "%s"}\n' \
        "$(date +%FT%T%z)" "${SLURM_CLUSTER_NAME:+$SLURM_CLUSTER_NAME/}$ID" "$ATTEMPT" "$1" "$text" 2>/dev/null >>"$RUN/jobs.jsonl"
}

# Ends a job that did not: requeued where that can help.
finish() {
    local code=$1 cause state
    EXCLUDE=''
    cause=$(why "$code")
    ((!ASKED || code == 2)) || code=75
    if ((code == 2)); then
        record 2 "$cause"
        wrong "the call is wrong, see above: not requeued"
    elif ((code == 75)); then
        cause="it was asked to stop"
    else
        [[ -n ${FAILURES:-} ]] || count_failure
        say "$cause"
        if ((FAILURES >= 3)); then
            record "$code" "$cause"
            say "failed with $code for the third time at the same checkpoint ($NEWEST): not requeued"
            exit "$code"
        fi
        exclude
    fi
    record "$code" "$cause"
    rm -f -- "$WORDS"
    if ((CHAIN > 1)); then
        say "ended with $code: the next job of the chain goes on from the newest checkpoint"
        exit "$code"
    fi
    state=$(patiently scontrol -o show job "$ID")
    if [[ $state != *" JobState=RUNNING "* ]]; then
        say "ended with $code: Slurm has ended the job (cancelled, say); submit again, it goes on from the newest checkpoint"
        exit "$code"
    fi
    say "ended with $code: requeued, to go on from the newest checkpoint"
    patiently scontrol requeue "$ID" || say "and Slurm refused that: submit again, it goes on; with --chain N by itself"
    # Only a job that waits may be told so; Slurm leaves this shell KillWait seconds.
    if [[ -n $EXCLUDE ]]; then
        for _ in 1 2 3 4 5 6 7 8 9; do
            scontrol update JobId="$ID" ExcNodeList="$EXCLUDE" 2>/dev/null && break
            sleep 0.5
        done
    fi
    exit "$code"
}
