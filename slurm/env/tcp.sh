# TCP over Ethernet, for `--setup slurm/env/tcp.sh`. The other files here source this one: NCCL and gloo meet over TCP
# on any network.
#
# Sourced once, on the job's first node; the values go to all nodes, which have to name their interfaces alike. What is
# exported already stays. Sources:
# [NCCL] Environment Variables, NVIDIA: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
# [PyTorch] Distributed communication package: https://docs.pytorch.org/docs/stable/distributed.html
# [UCX] Open MPI, InfiniBand / RoCE support: https://docs.open-mpi.org/en/v5.0.x/tuning-apps/networking/ib-and-roce.html
# shellcheck shell=bash

# The interface of the route from here to another node of the job: to the master, or from the master to the next node.
# Nothing where the job has one node. A host's own name may stand for 127.0.1.1, so its own address says nothing.
imagebert_interface() {
    local host address
    for host in ${MASTER_ADDR:-} $(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null); do
        address=$(getent ahostsv4 "$host" 2>/dev/null | awk 'NR == 1 { print $1 }') || continue
        [[ -n $address ]] || continue
        address=$(ip -o route get "$address" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p') || continue
        [[ -n $address && $address != lo ]] || continue
        printf '%s\n' "$address"
        return
    done
}

imagebert_found=$(imagebert_interface)
if [[ -n $imagebert_found ]]; then
    # [NCCL] Interfaces for NCCL's rendezvous, and for its data where there is nothing better; `=`: this very name.
    export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-=$imagebert_found}"
    # [PyTorch] The same for gloo, which otherwise takes what the host's own name resolves to.
    export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$imagebert_found}"
    # Devices that UCX may use, by their names [UCX]; only where the file that is given is this one.
    if [[ ${BASH_SOURCE[1]:-} != *@(infiniband|efa|slingshot).sh ]]; then
        export UCX_NET_DEVICES="${UCX_NET_DEVICES:-$imagebert_found}"
        # [NCCL] Threads a connection and sockets a thread: 1 by default, 4 for networks of 100 Gbit/s (their product
        # is 64 at most). /sys gives Mbit/s, or -1. Where one of the two is given, the other is the user's too.
        imagebert_speed=$(cat "/sys/class/net/$imagebert_found/speed" 2>/dev/null) || imagebert_speed=0
        if ((imagebert_speed >= 100000)) && [[ -z ${NCCL_SOCKET_NTHREADS:-}${NCCL_NSOCKS_PERTHREAD:-} ]]; then
            export NCCL_SOCKET_NTHREADS=4 NCCL_NSOCKS_PERTHREAD=4
        fi
    fi
fi
unset -f imagebert_interface
unset imagebert_found imagebert_speed
