"""A real Slurm cluster on this one machine: munged, slurmctld, and nodes in namespaces of their own.

    python -m tests.slurm.cluster FOLDER     then elsewhere  export SLURM_CONF=FOLDER/slurm.conf  and use sbatch

A node has its own network card on a private bridge, hostname, processes, /dev/shm and FOLDER/local: ending its first
process is a power-off, taking its link down a pulled cable. GPUs are declared, not there. Needs root and Debian's
packages (PACKAGES), which `up` installs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
_BRIDGE, _NETWORK = "imagebert0", "198.18.61"
_PORT = 26817
# What a node's first process does: its own /proc, name and files; then it keeps slurmd and reaps orphans.
_NODE = """
mount -t proc proc /proc
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs -o mode=1777,size=1G shm /dev/shm
mount -t tmpfs -o mode=1777 local "$2/local"
trap 'exit 0' TERM
until [ -e "/sys/class/net/eth0" ] && grep -q 1 /sys/class/net/eth0/carrier 2>/dev/null; do sleep 0.05; done
slurmd -D -N "$1" &
while :; do wait -n 2>/dev/null || sleep 0.2; done
"""
_CONF = """
ClusterName=test
SlurmctldHost=ctl({network}.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits; less than 5 is taken for the default, 120.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
PropagateResourceLimits=NONE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=8
SlurmctldTimeout=8
MessageTimeout=5
TCPTimeout=2
KillWait=5
WaitTime=0
CompleteWait=0
MinJobAge=3600
ReturnToService=2
JobRequeue=1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


class Cluster:
    """Nodes node1 ... nodeN. Use as a context manager."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 16, gpus: int = 2) -> None:
        self.folder, self.nodes, self.cpus, self.gpus = folder.absolute(), nodes, cpus, gpus
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        self.env |= {"SLURM_CONF": str(self.folder / "slurm.conf"), "LC_ALL": "C"}
        self.env["IMAGEBERT_ALLOW_CPU"] = "1"  # its GPUs are declared only
        self.env["PATH"] += ":/usr/sbin:/sbin"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        install()
        for name in ("state", "spool", "local"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self._write_configuration()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        try:
            files = [
                f"--{kind}={self.folder}/munge.{kind.split('-')[0]}" for kind in ("key-file", "pid-file", "seed-file")
            ]
            socket = self.folder / "munge.socket"
            self._daemon("munged", ["munged", "--foreground", "--force", f"--socket={socket}", *files])
            wait_for(lambda: self._run(["munge", "-n", "-S", socket]).returncode == 0, 10, "munged")
            self._run(["ip", "link", "del", _BRIDGE])  # of a test run that was killed
            self._call("ip", "link", "add", _BRIDGE, "type", "bridge")
            self._call("ip", "addr", "add", f"{_NETWORK}.1/24", "dev", _BRIDGE)
            self._call("ip", "link", "set", _BRIDGE, "up")
            # slurmctld insists that its host has the name that the configuration says.
            start = f'hostname ctl; mount --bind "{self.folder}/hosts" /etc/hosts; exec slurmctld -D -c'
            self._daemon("slurmctld", ["unshare", "--uts", "--mount", "sh", "-c", start])
            for number in range(1, self.nodes + 1):
                self.start(number)
            self.wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in [n for n in self._daemons if n.startswith("node")]:
            self.kill(int(name[4:]))
        for process in self._daemons.values():
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        self._run(["ip", "link", "del", _BRIDGE])

    def _write_configuration(self) -> None:
        devices = self.folder / "gpu"
        devices.mkdir(exist_ok=True)
        for number in range(self.gpus):  # a gpu without a device makes the node invalid
            if not (devices / str(number)).exists():
                os.mknod(devices / str(number), 0o20666, os.makedev(1, 3))
        names = [f"node{i}" for i in range(1, self.nodes + 1)]
        (self.folder / "gres.conf").write_text(
            f"NodeName=node[1-{self.nodes}] Name=gpu File={devices}/[0-{self.gpus - 1}]\n"
        )
        lines = [
            f"NodeName={name} NodeAddr={_NETWORK}.{10 + i} CPUs={self.cpus} Boards=1 SocketsPerBoard=1 "
            f"CoresPerSocket={self.cpus} ThreadsPerCore=1 RealMemory=100000 Gres=gpu:{self.gpus} State=UNKNOWN"
            for i, name in enumerate(names, 1)
        ]
        conf = _CONF.format(
            folder=self.folder, network=_NETWORK, port=_PORT, node_port=_PORT + 1, nodes="\n".join(lines)
        )
        (self.folder / "slurm.conf").write_text(conf)
        hosts = [f"{_NETWORK}.{10 + i} {name}" for i, name in enumerate(names, 1)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{_NETWORK}.1 ctl", *hosts]) + "\n")

    def _daemon(self, name: str, command: Sequence[object]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(str, command)],  # nothing outlives a killed test run
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._daemons[name] = process
        return process

    def _run(self, command: Sequence[object]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, command)), env=self.env, capture_output=True, text=True, check=False)

    def _call(self, *command: str) -> str:
        done = self._run(command)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    # ------------------------------------------------------------------------------------------------------- nodes

    def start(self, number: int) -> None:
        """Boots a node, or what was left of it."""
        name = f"node{number}"
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        spaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
        process = self._daemon(name, [*spaces, "bash", "-c", _NODE, "node", name, self.folder])
        init = wait_for(lambda: self._children(process.pid), 10, name)[0]
        self._run(["ip", "link", "del", f"ib{number}"])
        card = ["address", f"02:00:00:00:00:{number:02x}"]  # a machine that boots again has the card that it had
        link = ["link", "add", f"ib{number}", "type", "veth", "peer", "name", "eth0", *card, "netns", str(init)]
        self._call("ip", *link)
        self._call("ip", "link", "set", f"ib{number}", "master", _BRIDGE, "up")
        inside = ["nsenter", "-t", str(init), "-n", "ip"]
        self._call(*inside, "link", "set", "lo", "up")
        self._call(*inside, "addr", "add", f"{_NETWORK}.{10 + number}/24", "dev", "eth0")
        self._call(*inside, "link", "set", "eth0", "up")

    def kill(self, number: int) -> None:
        """Power-off: every process of the node ends at once."""
        process = self._daemons.pop(f"node{number}")
        for init in self._children(process.pid):
            os.kill(init, signal.SIGKILL)
        process.wait(10)

    def cut(self, number: int) -> None:
        """Pulls the node's cable."""
        self._call("ip", "link", "set", f"ib{number}", "down")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Without an answer of Slurm's controller."""
        controller = self._daemons["slurmctld"].pid
        os.kill(controller, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(controller, signal.SIGCONT)

    def heal(self, number: int) -> None:
        self._call("ip", "link", "set", f"ib{number}", "up")

    def processes(self, number: int, text: str) -> list[int]:
        """Outer process numbers of what runs on a node with `text` in its command line, training ranks say."""
        found, left = [], self._children(self._daemons[f"node{number}"].pid)
        while left:
            pid = left.pop()
            left += self._children(pid)
            try:
                if text in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                    found.append(pid)
            except OSError:
                continue
        return found

    @staticmethod
    def _children(pid: int) -> list[int]:
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            return [int(p) for thread in threads for p in (thread / "children").read_text().split()]
        except OSError:
            return []

    def wait_until_idle(self, seconds: float = 60) -> None:
        wait_for(lambda: set(self._run(["sinfo", "-h", "-N", "-o", "%t"]).stdout.split()) == {"idle"}, seconds, "nodes")

    # -------------------------------------------------------------------------------------------------------- jobs

    def call(self, command: Sequence[object], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """A command as a user of the cluster types it."""
        command = list(map(str, command))
        return subprocess.run(command, cwd=cwd, env=self.env | env, capture_output=True, text=True, check=False)

    def field(self, job: str, name: str) -> str:
        words = self._run(["scontrol", "-o", "show", "job", job]).stdout.split()
        return next((w.partition("=")[2] for w in words if w.startswith(f"{name}=")), "")

    def wait_for_end(self, job: str, seconds: float) -> str:
        """Its last state."""
        ended = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
        return wait_for(lambda: (s := self.field(job, "JobState")) in ended and s, seconds, f"job {job}") or ""


def install() -> None:
    """Debian's packages, where they are missing."""
    if all(
        shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        for name in ("slurmctld", "slurmd", "munged", "ip")
    ):
        return
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)


def wait_for(ask: Callable[[], T], seconds: float, what: str) -> T:
    """What `ask` says as soon as it is true."""
    until = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: waited {seconds:.0f} s")
        time.sleep(0.1)
    return answer


def main() -> None:
    with Cluster(Path(sys.argv[1])) as cluster:
        print(f"up; export SLURM_CONF={cluster.env['SLURM_CONF']}; Ctrl-C ends it", flush=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        signal.sigwait([signal.SIGINT, signal.SIGTERM])


if __name__ == "__main__":
    main()
