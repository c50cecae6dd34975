from __future__ import annotations

import os
import socket

import pytest

from imagebert.config import UsageError
from imagebert.launch import Launch, discover, expand_hosts, find_job, host_name, see_own_gpu

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


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        # As `scontrol show hostnames` of Slurm 22.05 prints them.
        ("node1", "node1"),
        ("a,b", "a b"),
        ("a,a", "a a"),
        ("login.example.org", "login.example.org"),
        ("[1-3]", "1 2 3"),
        ("x[9-11]", "x9 x10 x11"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("n[08-09,10],m[1]", "n08 n09 n10 m1"),
        ("q[3,1-2]", "q3 q1 q2"),
        ("gpu[07-08,11],cpu1", "gpu07 gpu08 gpu11 cpu1"),
        ("a[1,3-5]b[2-3]", "a1b2 a1b3 a3b2 a3b3 a4b2 a4b3 a5b2 a5b3"),
        # It refuses a name that goes on behind its numbers; sites have such.
        ("gpu[01-02]-ib", "gpu01-ib gpu02-ib"),
        ("c[1-2].hpc,d", "c1.hpc c2.hpc d"),
        ("", ""),
    ],
)
def test_lists_of_hosts(text: str, hosts: str) -> None:
    assert expand_hosts(text) == hosts.split()


def step(nodes: str, rank: int = 1, **env: str) -> dict[str, str]:
    layout = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "12"}
    return {**layout, "SLURM_STEP_NODELIST": nodes, **env}


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.1.1", "::1", "localhost.localdomain"])
def test_an_address_that_is_another_host_on_each_node_is_not_taken(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    left = {"MASTER_ADDR": address, "MASTER_PORT": "29500"}
    assert discover(step("gpu[01-02]-ib", **left)).master == ("gpu01-ib", 20012)
    assert not caplog.messages  # one rank says it
    assert discover(step("gpu[01-02]-ib", rank=0, **left)).master == ("gpu01-ib", 20012)
    assert caplog.messages == [f"MASTER_ADDR={address} means another host on each of 2 nodes: not taken"]
    assert discover(step("gpu01", **left)).master == (address, 29500)
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", **left}
    assert discover({**mpi, "SLURM_JOB_NUM_NODES": "2"}).master is None
    assert discover(mpi).master == (address, 29500)


def test_a_port_that_is_none() -> None:
    with pytest.raises(UsageError, match="MASTER_PORT is '99999': export a port"):
        discover({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "99999"})


def test_a_host_has_the_name_that_slurm_gives_it() -> None:
    assert host_name({"SLURMD_NODENAME": "gpu07"}) == "gpu07"
    assert host_name({}) == socket.gethostname()


def test_a_task_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    for name, value in {**env, "MASTER_ADDR": "host", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    for shown, seen in {"2,5,7": "5", "3": "3", "": ""}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        see_own_gpu()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
