# Elastic Fabric Adapter of Amazon EC2, for `--setup slurm/env/efa.sh`. NCCL needs libfabric and aws-ofi-nccl,
# which come with Amazon's images; since aws-ofi-nccl 1.7 and libfabric 1.18 the plugin chooses provider, protocol and
# RDMA by itself, and FI_PROVIDER, NCCL_PROTO, FI_EFA_USE_DEVICE_RDMA and FI_EFA_FORK_SAFE are better left alone.
#
# What is exported already stays. Sources:
# [EFA] EFA Cheatsheet, aws-ofi-nccl: https://github.com/aws/aws-ofi-nccl/blob/master/doc/efa-env-var.md
# [NCCL] Environment Variables, NVIDIA: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
# shellcheck shell=bash

# NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME.
# shellcheck source=slurm/env/tcp.sh
source "$(dirname "${BASH_SOURCE[0]}")/tcp.sh"

# [EFA] No huge pages for libfabric's buffers: with them a fork can fail with "Cannot allocate memory", as it does where
# processes feed a training. It costs little.
export FI_EFA_USE_HUGE_PAGE="${FI_EFA_USE_HUGE_PAGE:-0}"
