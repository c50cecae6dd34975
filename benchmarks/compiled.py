"""Compiles every shipped configuration of the kernels for GPUs that need not be there, and reads what came out.

Triton brings ptxas, cuobjdump and nvdisasm. Read are the registers and spills of a thread, the shared memory of a
program, how many programs fit on a multiprocessor, whether each matrix product became a matrix instruction, how wide
the loads are, and how many instructions the longest loop has: what a turn over a full-length pair costs to issue.
"""

from __future__ import annotations

import collections
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from imagebert_kernels import attention

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_HEADS = {32: 12, 64: 12, 128: 16}  # any number does; these are common


class Chip(NamedTuple):
    """What a multiprocessor has (CUDA C++ Programming Guide, technical specifications per compute capability)."""

    capability: int
    shared_memory: int  # bytes of a program at most
    shared_memory_all: int  # bytes of all programs, of which each takes 1 KiB more than it asks for
    registers: int = 65536
    warps: int = 64


CHIPS = (Chip(80, 166912, 167936), Chip(90, 232448, 233472))


class Configuration(NamedTuple):
    kernel: str  # forward or backward
    head_size: int
    tiling: attention.Tiling
    dropout: bool
    chip: Chip
    dtype: str = "bf16"


class Compiled(NamedTuple):
    registers: int  # of a thread
    spills: int  # bytes of a thread's stack
    shared_memory: int  # bytes of a program
    programs: int  # that fit on a multiprocessor
    products: int  # matrix products in the program
    products_on_matrix_units: int
    matrix_instructions: dict[str, int]  # HGMMA: Hopper's, of four warps; HMMA: of one warp
    loads: dict[str, int]  # global loads by their width
    longest_loop: int  # instructions of one turn


def shipped() -> list[Configuration]:
    return [
        Configuration(kernel, size, tiling, dropout, chip, dtype)
        for dtype, dropout in (("bf16", True), ("bf16", False), ("fp16", True))
        for chip in CHIPS
        for kernel, tilings in (("forward", attention.forward_tilings), ("backward", attention.backward_tilings))
        for size in attention.HEAD_SIZES
        for tiling in tilings(size, chip.capability >= 90)
    ]


def compile_all(configurations: list[Configuration]) -> list[Compiled]:
    """In as many processes as there are cores; Triton keeps the results for the next time."""
    os.environ.pop("TRITON_INTERPRET", None)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_compile, configurations))


def compile_ahead(configurations: list[Configuration]) -> None:
    """Fills Triton's cache; what does not compile is passed over."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for future in [pool.submit(_compile, configuration) for configuration in configurations]:
            with suppress(Exception):
                future.result()


def _compile(configuration: Configuration) -> Compiled:
    function = getattr(attention, configuration.kernel + "_kernel")
    tiling, chip = configuration.tiling, configuration.chip
    constants = {
        "N": _HEADS[configuration.head_size],
        "D": configuration.head_size,
        "DROPOUT": configuration.dropout,
        **tiling.constants(),
    }
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else _type(name, configuration.dtype) for name in names}
    # As at run time: tensors and strides are multiples of 16 bytes and elements.
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n.endswith("stride")]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", chip.capability, 32), options=tiling.options())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert used is not None, usage
    registers, spills = int(used[1]), int(used[2])
    operations = collections.Counter(re.findall(_INSTRUCTION, code, re.M))
    products = re.findall(r"(?:tt\.dot|warp_group_dot) .*-> tensor<.*?(#\w+)>", kernel.asm["ttgir"])
    return Compiled(
        registers,
        spills,
        kernel.metadata.shared,
        _programs(chip, registers, kernel.metadata.shared, tiling.warps),
        len(products),
        sum(layout.startswith("#mma") for layout in products),
        {unit: _count(operations, unit) for unit in ("HGMMA", "HMMA")},
        {name: n for name, n in operations.items() if name.startswith(("LDG.", "LDGSTS."))},
        _longest_loop(code),
    )


def _type(name: str, dtype: str) -> str:
    known = {"query_ends": "*i32", "key_ends": "*i32", "logsumexp": "*fp32", "seed": "*i64", "scale": "fp32"}
    return known.get(name, "i32" if name.endswith("stride") or name in ("all_rows", "threshold") else f"*{dtype}")


def _programs(chip: Chip, registers: int, shared_memory: int, warps: int) -> int:
    by_registers = chip.registers // (-(-registers // 8) * 8 * 32) // warps
    return min(by_registers, chip.shared_memory_all // (shared_memory + 1024), chip.warps // warps)


# An instruction of nvdisasm's listing: its address, perhaps a predicate, its name.
_INSTRUCTION = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)"


def _count(operations: collections.Counter[str], name: str) -> int:
    return sum(n for operation, n in operations.items() if operation == name or operation.startswith(name + "."))


def _longest_loop(code: str) -> int:
    """Instructions from the target of a backward branch to the branch, of the longest loop without another inside."""
    seen, labels, longest = 0, {}, 0
    inner_end = -1
    for line in code.splitlines():
        if label := re.match(r"\.(L_x_\d+):", line):
            labels[label[1]] = seen
        if re.match(_INSTRUCTION, line):
            seen += 1
            branch = re.search(r"\bBRA `\(\.(L_x_\d+)\)", line)
            # The kernel's end is a branch to itself.
            if branch and seen - 1 > labels.get(branch[1], seen) > inner_end:
                longest, inner_end = max(longest, seen - labels[branch[1]]), labels[branch[1]]
    return longest


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def as_plain(configuration: Configuration, result: Compiled) -> dict[str, Any]:
    return {
        "kernel": configuration.kernel,
        "capability": configuration.chip.capability,
        "head_size": configuration.head_size,
        "held": configuration.tiling.held,
        "dropout": configuration.dropout,
        "dtype": configuration.dtype,
        "tiling": configuration.tiling._asdict(),
        **result._asdict(),
    }
