# InfiniBand, for `--setup slurm/env/infiniband.sh`. NCCL finds its adapters itself; what it cannot know is that ports
# with an Ethernet link beside them belong to another network, such as that of the storage.
#
# Sourced once, on the job's first node: all nodes have to have the same adapters. What is exported already stays.
# Sources:
# [NCCL] Environment Variables, NVIDIA: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
# [UCX] Open MPI, InfiniBand / RoCE support: https://docs.open-mpi.org/en/v5.0.x/tuning-apps/networking/ib-and-roce.html
# shellcheck shell=bash

# NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME.
# shellcheck source=slurm/env/tcp.sh
source "$(dirname "${BASH_SOURCE[0]}")/tcp.sh"

imagebert_ports='' imagebert_ethernet=''
for imagebert_port in /sys/class/infiniband/*/ports/*; do
    [[ $(cat "$imagebert_port/state" 2>/dev/null) == *ACTIVE* ]] || continue
    if [[ $(cat "$imagebert_port/link_layer" 2>/dev/null) == InfiniBand ]]; then
        imagebert_name=${imagebert_port#/sys/class/infiniband/}
        imagebert_ports+=${imagebert_ports:+,}${imagebert_name/\/ports\//:}
    else
        imagebert_ethernet=1
    fi
done
if [[ -n $imagebert_ports && -n $imagebert_ethernet ]]; then
    # [NCCL] The adapters and ports to use: `=mlx5_0:1,mlx5_1:1`, `=` for exact names, which NVIDIA recommends always.
    export NCCL_IB_HCA="${NCCL_IB_HCA:-=$imagebert_ports}"
    # [UCX] The same for MPI over UCX: `mlx5_0:1,mlx5_1:1`.
    export UCX_NET_DEVICES="${UCX_NET_DEVICES:-$imagebert_ports}"
fi
unset imagebert_ports imagebert_ethernet imagebert_port imagebert_name
