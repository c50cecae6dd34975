"""Compiles every shipped configuration of the kernels for GPUs that need not be there, and reads what came out.

Triton brings ptxas, cuobjdump and nvdisasm. Read are the registers and spills of a thread, the shared memory of a
program, how many programs fit on a multiprocessor, whether each matrix product became a matrix instruction, how wide
the loads are, and how many instructions the longest loop has: what a turn over a full-length pair costs to issue.
"""

from __future__ import annotations

import collections
import importlib
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from imagebert_kernels import (
    attention,
    classification,
    embedding,
    gelu,
    layer_norm,
    masking,
    region_projection,
    region_regression,
)

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
    """One kernel as it is started for one size, chip and type."""

    operation: str  # the file of kernels/imagebert_kernels/
    kernel: str  # forward, backward, ...
    size: int  # of a head, or H, I, F or V
    constants: dict[str, int]
    options: dict[str, int]
    chip: Chip
    dropout: bool = False
    dtype: str = "bf16"
    held: int = 0  # attention only: the longest sequence that is held at once
    features: str = "i8"  # the type of stored features

    @property
    def types(self) -> dict[str, str]:
        """Triton's type of each argument that is not told by its name alone."""
        return _TYPES.get(self.operation, {}) | {"features": f"*{self.features}"}


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


# Arguments by name; all others are tensors of the configuration's type.
_NAMES = {
    "i32": ("all_rows", "all_keys", "threshold", "rows", "items", "entries", "masked_rows", "mask_word", "vocabulary"),
    "i64": ("mask_state", "change_state", "word_state", "masked_rate", "mask_rate", "random_rate", "zeroed_rate"),
    "fp32": ("scale", "epsilon"),
    "*fp32": ("logsumexp", "mean", "deviation", "sums", "parts", "losses", "scales", "boxes"),
    "*i32": ("query_ends", "key_ends"),
    "*i64": ("seed", "identifiers", "tokens", "position_ids", "token_type_ids", "regions", "labels"),
}
_TYPES: dict[str, dict[str, str]] = {
    "region_projection": {"zeroed": "*i1"},
    "region_regression": {"rows": "*i64"},
    "masking": dict.fromkeys(("words", "samples", "places", "seen"), "*i64") | {"masked": "*i1", "zeroed": "*i1"},
}
_HIDDEN = {"base": 768, "large": 1024, "xl": 1600}
_FEATURES, _WORDS, _CLASSES = 2048, 30522, 1600


def shipped() -> list[Configuration]:
    """Every configuration that training in bf16 and fp16 starts."""
    return [c for chip in CHIPS for c in (*_attention(chip), *_rows(chip), *_products(chip), *_others(chip))]


def attention_configuration(
    kernel: str, size: int, tiling: attention.Tiling, dropout: bool, chip: Chip, dtype: str = "bf16"
) -> Configuration:
    constants = {"N": _HEADS[size], "D": size, "DROPOUT": dropout, **tiling.constants()}
    return Configuration("attention", kernel, size, constants, tiling.options(), chip, dropout, dtype, tiling.held)


def _attention(chip: Chip) -> Iterator[Configuration]:
    for dtype, dropout in (("bf16", True), ("bf16", False), ("fp16", True)):
        for kernel, tilings in (("forward", attention.forward_tilings), ("backward", attention.backward_tilings)):
            for size in attention.HEAD_SIZES:
                for tiling in tilings(size, chip.capability >= 90):
                    yield attention_configuration(kernel, size, tiling, dropout, chip, dtype)


def _rows(chip: Chip) -> Iterator[Configuration]:
    """What is done to rows of H, and to rows of I = 4 H."""
    for size, (kernel, backward), dropout in itertools.product(
        _HIDDEN.values(), (("forward", False), ("backward", True)), (True, False)
    ):
        constants, options = _cut(layer_norm.tiling(size, backward))
        constants["DROPOUT"] = dropout
        yield Configuration("layer_norm", kernel, size, constants, options, chip, dropout)
        for words in (True, False):
            yield Configuration("embedding", kernel, size, {**constants, "WORDS": words}, options, chip, dropout)
        if not dropout:
            yield Configuration("gelu", kernel, 4 * size, *_cut(gelu.tiling(4 * size, backward)), chip)


def _products(chip: Chip) -> Iterator[Configuration]:
    for size in _HIDDEN.values():
        for features in ("i8", "fp16", "fp32"):
            for kernel in ("forward", "backward"):
                cut = region_projection.tiling(kernel == "backward")
                constants = {"COLUMNS": size, "INNER": _FEATURES, **cut.constants()}
                yield Configuration(
                    "region_projection", kernel, size, constants, cut.options(), chip, features=features
                )
                cut = region_regression.TILING
                constants = {"COLUMNS": _FEATURES, "INNER": size, **cut.constants()}
                yield Configuration(
                    "region_regression", kernel, size, constants, cut.options(), chip, features=features
                )
        constants, options = _cut(embedding.table_tiling())
        yield Configuration("embedding", "table", size, {"COLUMNS": size, **constants}, options, chip)


def _others(chip: Chip) -> Iterator[Configuration]:
    for size in (_WORDS, _CLASSES):
        yield Configuration("classification", "softmax", size, *_cut(classification.tiling(size)), chip)
    yield Configuration("masking", "words", 0, *_cut(masking.tiling()), chip)
    yield Configuration("masking", "regions", 0, *_cut(masking.tiling()), chip)


def _cut(launch: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and options of a launch."""
    options = {name: value for name, value in launch.items() if name.startswith("num_")}
    return {name: value for name, value in launch.items() if name not in options}, options


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
    module = importlib.import_module(f"imagebert_kernels.{configuration.operation}")
    function = getattr(module, f"{configuration.operation}_{configuration.kernel}")
    chip, constants, names = configuration.chip, configuration.constants, function.arg_names
    signature = {name: "constexpr" if name in constants else _type(name, configuration) for name in names}
    # As at run time: tensors and strides are multiples of 16 bytes and elements.
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n.endswith("stride")]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", chip.capability, 32), options=configuration.options)
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
        _programs(chip, registers, kernel.metadata.shared, kernel.metadata.num_warps),
        len(products),
        sum(layout.startswith("#mma") for layout in products),
        {unit: _count(operations, unit) for unit in ("HGMMA", "HMMA")},
        {name: n for name, n in operations.items() if name.startswith(("LDG.", "LDGSTS."))},
        _longest_loop(code),
    )


def _type(name: str, configuration: Configuration) -> str:
    if name in configuration.types:
        return configuration.types[name]
    known = next((kind for kind, names in _NAMES.items() if name in names), f"*{configuration.dtype}")
    return "i32" if name.endswith("stride") else known


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
    described = configuration._asdict()
    described["capability"] = described.pop("chip").capability
    return {**described, **result._asdict()}
