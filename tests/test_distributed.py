from __future__ import annotations

import pytest

from imagebert.config import UsageError
from imagebert.distributed import Launch, discover

RENDEZVOUS = {"MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Launch(0, 1, 0, "alone", None)),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **RENDEZVOUS},
            Launch(3, 4, 1, "torchrun", ("host", 29500)),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", **RENDEZVOUS},
            Launch(1, 2, 1, "mpi", ("host", 29500)),
        ),
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_LOCALID": "1",
                "SLURM_JOB_ID": "20007",
                "SLURM_STEP_NODELIST": "gpu[07-08,11],cpu1",
            },
            Launch(5, 8, 1, "slurm", ("gpu07", 20007)),
        ),
        # An interactive allocation: Slurm's variables are there, but no step was launched.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Launch(0, 1, 0, "alone", None)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch(0, 1, 0, "alone", None)),
    ],
)
def test_discover(env: dict[str, str], expected: Launch) -> None:
    assert discover(env) == expected


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "expected whole numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2", **RENDEZVOUS}, "rank 2 of 2"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "without MASTER_ADDR"),
    ],
)
def test_half_set_variables_are_an_error(env: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        discover(env)
