# HPE Slingshot with NVIDIA GPUs, for `--setup slurm/env/slingshot.sh`. NCCL needs libfabric with cxi and the
# aws-ofi-nccl plugin: load the site's module (`module load ...`) before, in a setup file of your own that sources this
# one. HPE also asks for `--network=disable_rdzv_get` on srun.
#
# What is exported already stays, so a site's module comes first. Sources:
# [HPE] NCCL or RCCL on Slingshot, ccl_env.sh: https://github.com/HewlettPackard/shs-ccl-docs
# [CSCS] NCCL, Swiss National Supercomputing Centre: https://docs.cscs.ch/software/communication/nccl/
# [Isambard] NCCL, Bristol Centre for Supercomputing: https://docs.isambard.ac.uk/user-documentation/guides/nccl/
# [cxi] fi_cxi(7), libfabric: https://ofiwg.github.io/libfabric/main/man/fi_cxi.7.html
# [NCCL] Environment Variables, NVIDIA: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
# shellcheck shell=bash

# [HPE] [Isambard] NCCL's rendezvous goes over Slingshot's own interfaces, hsn0 and following: a prefix [NCCL].
if compgen -G '/sys/class/net/hsn*' >/dev/null; then
    export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-hsn}"
fi
# GLOO_SOCKET_IFNAME, and NCCL_SOCKET_IFNAME where there is no hsn.
# shellcheck source=slurm/env/tcp.sh
source "$(dirname "${BASH_SOURCE[0]}")/tcp.sh"

# [CSCS] [HPE] NCCL takes the plugin or stops, instead of falling back to TCP. Not in a job of one node [HPE], where it
# would send what stays within the node over the network.
if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then
    export NCCL_NET="${NCCL_NET:-AWS Libfabric}"
fi
# [HPE] [CSCS] GPU and network card exchange directly where they are on the same NUMA node [NCCL].
export NCCL_NET_GDR_LEVEL="${NCCL_NET_GDR_LEVEL:-PHB}"
# [HPE] [CSCS] Rings and trees may change between a node's network cards, which share a switch [NCCL].
export NCCL_CROSS_NIC="${NCCL_CROSS_NIC:-1}"
# [HPE] [Isambard] How registered memory is watched; with the next one it keeps NCCL from deadlocks.
export FI_MR_CACHE_MONITOR="${FI_MR_CACHE_MONITOR:-userfaultfd}"
# [HPE] [cxi] Host buffers are not registered with the GPU.
export FI_CXI_DISABLE_HOST_REGISTER="${FI_CXI_DISABLE_HOST_REGISTER:-1}"
# [HPE] Entries of a completion queue, and of a transmit queue.
export FI_CXI_DEFAULT_CQ_SIZE="${FI_CXI_DEFAULT_CQ_SIZE:-131072}"
export FI_CXI_DEFAULT_TX_SIZE="${FI_CXI_DEFAULT_TX_SIZE:-2048}"
# [HPE] The rendezvous protocol for large messages, and how much of one is sent ahead [cxi]: nothing.
export FI_CXI_RDZV_PROTO="${FI_CXI_RDZV_PROTO:-alt_read}"
export FI_CXI_RDZV_EAGER_SIZE="${FI_CXI_RDZV_EAGER_SIZE:-0}"
# [HPE] Messages are matched by the card until it has no room, then in software.
export FI_CXI_RX_MATCH_MODE="${FI_CXI_RX_MATCH_MODE:-hybrid}"
