# A script called by hand: looks at what can be looked at on this machine, takes a copy of the code, submits itself.
# shellcheck shell=bash

NOTICE=300 # seconds: the scripts' --signal=USR1@300
PROBLEMS=()

submit() {
    local gpus=--gpus-per-node=$GPUS minutes
    [[ -z $GRES ]] || gpus=--gres=$GRES
    local command=(sbatch --parsable "--job-name=$TITLE" "--nodes=$NODES" "$gpus"
        "--cpus-per-task=$((CPUS * ${STEP_TASKS:-$TASKS}))" "--time=$TIME" --export=ALL)
    minutes=$(minutes_of "$TIME")
    # Else Slurm would ask for the end at the beginning; it looks once a minute.
    ((minutes * 15 >= NOTICE)) || command+=("--signal=USR1@$((minutes * 15))")
    [[ -z $PARTITION ]] || command+=("--partition=$PARTITION")
    [[ -z $ACCOUNT ]] || command+=("--account=$ACCOUNT")
    [[ -z $QOS ]] || command+=("--qos=$QOS")
    [[ -z $AFTER ]] || command+=("--dependency=afterok:${AFTER//\?/?afterok:}" --kill-on-invalid-dep=yes)
    [[ -z ${WRITES-$RUN} ]] || command+=("--comment=imagebert writes $(realpath -m -- "${WRITES-$RUN}")")
    command+=(${SBATCH[@]+"${SBATCH[@]}"})
    [[ " ${command[*]}" != *" --array="* ]] || command+=(--output=slurm-%x-%A_%a.out)
    leave_behind
    ((FORCE || LOOKED)) || look "${command[@]}"
    if ((DRY)); then
        local word words=()
        for word in "$@"; do [[ $word == --dry-run ]] || words+=("$word"); done
        quoted "${command[@]}" "$SCRIPT" ${words[@]+"${words[@]}"}
        work
        return
    fi
    snapshot
    export IMAGEBERT_HOME IMAGEBERT_SUBMITTED=1
    [[ ! -d $VENV ]] || export IMAGEBERT_ENV=$VENV # a copy of the code has none beside it
    local ids=() id link=("${command[@]}")
    while ((${#ids[@]} < CHAIN)); do
        id=$(patiently "${link[@]}" "$SCRIPT" "$@") || {
            ((${#ids[@]} == 0)) || scancel "${ids[@]}"
            wrong "sbatch refused the job; its own message is above"
        }
        ids+=("${id%%;*}")
        link=("${command[@]}" "--dependency=afternotok:${ids[-1]}" --kill-on-invalid-dep=yes)
    done
    # As --after takes them: one of a chain ends well.
    (IFS='?' && printf '%s\n' "${ids[*]}")
}

# What an interactive job that this is called in, or an earlier run in this shell, would say to the new job.
leave_behind() {
    local name
    for name in "${!SLURM_@}"; do
        [[ $name == SLURM_CONF ]] || unset "$name"
    done
    unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK
}

# ---------------------------------------------------------------------------------------------------------- looking

problem() { PROBLEMS+=("$*"); }

# Says all that is wrong, as far as it can be known here, and ends with 2.
look() {
    local number folder
    for number in ${REGIONS[@]+"${!REGIONS[@]}"}; do
        for folder in "${REGIONS[number]}" "${PAIRS[number]}"; do
            [[ -f $folder/meta.json ]] || problem "there is no store at $folder: make it, or give --data DIR"
        done
    done
    [[ -z $SETUP || -f $SETUP ]] || problem "there is no --setup $SETUP"
    [[ -z $LOCAL || $LOCAL == /* ]] || problem "--local $LOCAL: give a node's own disk, from / on"
    # What the job before is to make is not there yet.
    if [[ -n $FROM && -z $AFTER && ! -f $FROM/config.json && ! -f $FROM/model/config.json && ! -d $FROM/checkpoints ]]; then
        problem "--from $FROM is neither a model folder nor a run"
    fi
    folder=$RUN
    while [[ ! -e $folder && $folder == */* ]]; do folder=${folder%/*}; done
    [[ -w ${folder:-/} || ! -e ${folder:-/} ]] || problem "$folder cannot be written: give --runs DIR or --run DIR"
    look_at_container
    look_at_cluster "$@"
    look_at_recipe
    ((${#PROBLEMS[@]})) || return 0
    local text
    for text in "${PROBLEMS[@]}"; do say "$text"; done
    wrong "not submitted; --force submits without looking"
}

look_at_container() {
    if [[ -z $CONTAINER ]]; then
        local given="$IMAGEBERT_HOME/.venv"
        [[ -f $VENV/bin/activate || ($VENV == "$given" && ! -d $VENV) ]] || problem "--env $VENV is no virtual environment"
        return
    fi
    # An image of a registry has no path here.
    [[ $CONTAINER != */* && $CONTAINER != *.sif && $CONTAINER != *.sqsh || $CONTAINER == *:* || -e $CONTAINER ]] ||
        problem "there is no --container $CONTAINER"
    if ! command -v apptainer >/dev/null && ! srun --help 2>/dev/null | grep -q -- --container-image; then
        problem "--container $CONTAINER: this cluster has neither pyxis nor apptainer"
    fi
}

look_at_cluster() { # the sbatch command
    if ! command -v sbatch >/dev/null || { ((DRY)) && ! scontrol show config >/dev/null 2>&1; }; then
        ((DRY)) || problem "there is no sbatch here: submit from a machine of the cluster"
        return
    fi
    local partition limit answer
    if [[ -n $PARTITION ]]; then
        partition=$(patiently scontrol -o show partition "${PARTITION%%,*}" 2>/dev/null)
    else
        partition=$(patiently scontrol -o show partition 2>/dev/null | grep ' Default=YES ')
    fi
    limit=$(minutes_of "$(sed -n 's/.* MaxTime=\([^ ]*\).*/\1/p' <<<"$partition")")
    if [[ -n $limit ]] && (($(minutes_of "$TIME") > limit)); then
        problem "--time $TIME: the partition's jobs have $limit minutes at most"
    fi
    # Sbatch's own look: partition, account, nodes and GPUs that there are. A job that is waited for may not be there.
    local test=() word
    for word in "${@:3}"; do [[ $word == --dependency=* || $word == --kill-on* ]] || test+=("$word"); done
    answer=$(patiently "$1" --test-only "${test[@]}" "$SCRIPT" 2>&1) || problem "${answer//$'\n'/; }"
    [[ -n ${WRITES-$RUN} ]] || return
    local id comment
    while IFS='|' read -r id comment; do
        [[ $comment == "imagebert writes $(realpath -m -- "${WRITES-$RUN}")" ]] || continue
        [[ "?$AFTER?" == *"?$id?"* ]] ||
            problem "job $id writes ${WRITES-$RUN} already: give --after $id, or another --run"
    done < <(squeue --me --noheader --format='%i|%k' 2>/dev/null)
}

look_at_recipe() {
    local ranks=() nodes answer imagebert=$VENV/bin/imagebert
    [[ -n $RECIPE && -n ${TASK:-} ]] || return
    [[ -x $imagebert ]] || imagebert=$(command -v imagebert) || {
        [[ -n $CONTAINER || -n $SETUP ]] ||
            problem "there is no imagebert here: give --env DIR (a virtual environment), --setup FILE or --container IMAGE"
        say "the recipe is not looked at: this machine has no imagebert"
        return
    }
    for ((nodes = ${NODES%-*}; nodes <= ${NODES#*-}; nodes++)); do ranks+=($((nodes * TASKS))); done
    local command=("$imagebert" doctor "--on-paper=$(IFS=, && printf %s "${ranks[*]}")" "--task=$TASK")
    [[ -z $AFTER ]] || command+=(--later)
    answer=$(with_code "${command[@]}" "$RECIPE" "${SETTINGS[@]}" 2>&1) || problem "${answer//imagebert: /}"
}

# Runs a command with this checkout's code, whatever is installed; without a checkout with what is installed.
with_code() {
    local path=$IMAGEBERT_HOME:$IMAGEBERT_HOME/kernels
    [[ -f $IMAGEBERT_HOME/imagebert/__init__.py ]] || path=''
    PYTHONPATH=$path${PYTHONPATH:+${path:+:}$PYTHONPATH} "$@"
}

# ---------------------------------------------------------------------------------------------------------- snapshot

# A copy of the code, which the job runs whatever becomes of the checkout; one for all submissions of the same code.
snapshot() {
    [[ -f $IMAGEBERT_HOME/imagebert/__init__.py && ! -f $IMAGEBERT_HOME/COMMIT ]] || return 0
    local target part folders=(imagebert kernels ds_configs slurm)
    target=$(cd "$IMAGEBERT_HOME" && find "${folders[@]}" -type f ! -name '*.pyc' -print0 | sort -z |
        xargs -0 sha256sum | sha256sum | cut -c 1-12)
    target=$(realpath -m -- "$RUNS")/.code/$target part=$target.$$
    if [[ ! -d $target ]]; then
        mkdir -p -- "$part" && tar -C "$IMAGEBERT_HOME" -c --exclude='*.pyc' "${folders[@]}" | tar -C "$part" -x &&
            { git -C "$IMAGEBERT_HOME" describe --always --dirty --abbrev=12 2>/dev/null || echo unknown; } >"$part/COMMIT" &&
            { mv -T -- "$part" "$target" 2>/dev/null || rm -r -- "$part"; } # another was sooner
        [[ -d $target ]] || wrong "cannot copy the code to $target: make room, or give --runs DIR"
    fi
    IMAGEBERT_HOME=$target
}
