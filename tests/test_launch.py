from __future__ import annotations

import pytest

from imagebert.config import UsageError
from imagebert.launch import Launch, discover, find_job

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
            Launch(1, 2, 1, "openmpi", ("host", 29500)),
        ),
        # Without a rendezvous MPI's ranks ask each other; in a Slurm job Open MPI's daemons inherit their srun's names.
        (
            {
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            Launch(3, 4, 1, "openmpi", None),
        ),
        (
            {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0"},
            Launch(2, 4, 0, "mpich", None),
        ),
        (
            {"MV2_COMM_WORLD_RANK": "2", "MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_LOCAL_RANK": "2"},
            Launch(2, 4, 2, "mvapich", None),
        ),
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_LOCALID": "1",
                "SLURM_JOB_ID": "20007",
                "SLURM_STEP_NODELIST": "gpu[07-08,11],cpu1",
            },
            Launch(5, 8, 1, "slurm", ("gpu07", 20000 + 20007 % 20000)),
        ),
        # srun --mpi=pmi2 sets MPICH's names too; a requeued job takes another port, an exported one is kept.
        (
            {
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_LOCALID": "0",
                "SLURM_JOB_ID": "12",
                "SLURM_STEP_NODELIST": "a,b",
                "SLURM_RESTART_COUNT": "1",
                "PMI_RANK": "1",
                "PMI_SIZE": "2",
            },
            Launch(1, 2, 0, "slurm", ("a", 20113)),
        ),
        (
            {
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_JOB_ID": "12",
                "SLURM_STEP_NODELIST": "gpu[1-2]",
                **RENDEZVOUS,
            },
            Launch(1, 2, 0, "slurm", ("host", 29500)),
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
        ({"RANK": "0", "WORLD_SIZE": "2"}, "without MASTER_ADDR"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "started by slurm without MASTER_ADDR"),
    ],
)
def test_half_set_variables_are_an_error(env: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        discover(env)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ("", 0)),
        ({"SLURM_RESTART_COUNT": "2"}, ("", 2)),
        ({"SLURM_JOB_ID": "12"}, ("12", 0)),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}, ("12", 2)),
        ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}, ("10_3", 0)),
        ({"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "big", "SLURM_RESTART_COUNT": "x"}, ("big/12", 0)),
    ],
)
def test_the_job_and_how_often_it_was_requeued(env: dict[str, str], expected: tuple[str, int]) -> None:
    assert find_job(env) == expected
