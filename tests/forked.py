"""Processes that cost no imports: each is forked from one that has torch, DeepSpeed and transformers, and no threads.

`start(code, *arguments)` is `python -c CODE ARGUMENTS` in all but its seconds: a process with its own environment and
output, which ends by itself, with an exit code, or by a signal. Real launchers are started in
tests/training/test_run.py's test_launchers.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

IMAGEBERT = "import sys; from imagebert.cli import main; sys.exit(main())"
_ROOT = Path(__file__).parents[1]


class Forked:
    """A process, as subprocess.Popen shows one. Its output lies in files: nobody has to read it."""

    def __init__(self, code: str, arguments: Iterable[object], environment: Mapping[str, str]) -> None:
        self._out, self._err = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))  # noqa: SIM115
        job = {"code": code, "arguments": list(map(str, arguments)), "environment": dict(environment)}
        self.pid: int = _ask(job, self._out, self._err)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask({"wait": self.pid})
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"process {self.pid} has not ended in {timeout} s: {self._said()}")
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it has said when it has ended, on its output and its error output."""
        self.wait(timeout)
        return self._said()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)

    def _said(self) -> tuple[str, str]:
        def read(file: IO[str]) -> str:
            file.seek(0)
            return file.read()

        return read(self._out), read(self._err)


def start(code: str, *arguments: object, **environment: str) -> Forked:
    """Starts `code`, with `environment` beside this process' own."""
    return Forked(code, arguments, os.environ | environment)


def start_ranks(ranks: int, code: str, *arguments: object, **environment: str) -> list[Forked]:
    """Starts so many ranks that find each other, as torchrun would."""
    layout = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return [start(code, *arguments, **layout | names | environment) for names in own]


def finish(processes: Iterable[Forked], timeout: float = 300) -> None:
    """Waits for processes that are to do what they were asked for."""
    for process in list(processes):
        out, err = process.communicate(timeout)
        assert process.returncode == 0, out + err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@cache
def _server() -> socket.socket:
    """The process that forks, one in a session of tests."""
    ours, theirs = socket.socketpair()
    environment = os.environ | {"PYTHONPATH": f"{_ROOT}:{_ROOT}/kernels", "OMP_NUM_THREADS": "1"}
    with theirs:
        command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
        subprocess.Popen(command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    return ours


def _ask(message: dict[str, Any], *files: IO[str]) -> Any:
    data = json.dumps(message).encode()
    server = _server()
    socket.send_fds(server, [len(data).to_bytes(4)], [file.fileno() for file in files])
    server.sendall(data)
    return json.loads(server.recv(100))


def _serve(asked: socket.socket) -> None:
    """Answers until nobody can ask any more. A child returns."""
    import imagebert.retrieval.validation
    import imagebert.training.run  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == 1, "threads would be missing in a fork"
    gc.collect()
    gc.freeze()  # else each child looks through all modules, at its end at the latest, and so copies their memory
    while True:
        length, files, _, _ = socket.recv_fds(asked, 4, 2)
        if not length:
            os._exit(0)
        message = json.loads(asked.recv(int.from_bytes(length), socket.MSG_WAITALL))
        if "wait" in message:
            pid, status = os.waitpid(message["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                asked.close()
                _become(message, files)
                return
            for file in files:
                os.close(file)
        asked.sendall(json.dumps(answer).encode())


def _become(message: dict[str, Any], files: list[int]) -> None:
    for file, number in zip(files, (1, 2), strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(message["environment"])
    sys.path[:0] = message["environment"].get("PYTHONPATH", "").split(":")
    sys.argv = ["-c", *message["arguments"]]
    exec(message["code"], {"__name__": "__main__"})


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
