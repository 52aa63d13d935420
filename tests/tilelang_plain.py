"""TileLang programs on the CPU: each tile operation as loops over float32, compiled by g++.

What a program computes for each tile, which rows it takes and which it writes are its own then;
how TileLang lowers tile operations for a GPU is not looked at. Types narrower than float32 become
float32. Annotations are evaluated, so this file does without those of the future.
"""

import ctypes
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch


@contextmanager
def plain_tiles() -> Iterator[None]:
    """Programs made meanwhile consist of loops."""
    import tilelang.language as T
    from tilelang import tvm

    load_type = tvm.tirx.BufferLoad

    @T.macro
    def fill(x, rows, columns):
        for i, j in T.grid(rows, columns):
            x[i, j] = 0.0

    @T.macro
    def multiply(a, b, c, m, n, k):
        for i, j in T.grid(m, n):
            c[i, j] = 0.0
            for x in T.serial(k):
                c[i, j] = c[i, j] + a[i, x] * b[j, x]

    @T.macro
    def load(x, outer, row, column, tile, rows, columns):
        for i, j in T.grid(rows, columns):
            if len(outer) == 1:
                tile[i, j] = x[outer[0], row + i, column + j]
            else:
                tile[i, j] = x[row + i, column + j]

    @T.macro
    def store(tile, x, outer, row, column, rows, columns):
        for i, j in T.grid(rows, columns):
            x[outer[0], row + i, column + j] = tile[i, j]

    def copy(source, target, **_):
        if isinstance(target, load_type):
            *outer, row, column = target.indices
            return store(source, target.buffer, outer, row, column, *source.shape)
        if isinstance(source, load_type):
            *outer, row, column = source.indices
            return load(source.buffer, outer, row, column, target, *target.shape)
        return load(source, [], 0, 0, target, *target.shape)

    def shared(shape, _):
        tile = T.alloc_local(shape, "float32")
        # Used where it is made, or TileLang declares it in the first block that uses it.
        fill(tile, *shape)
        return tile

    def wide(make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return make(*("float32" if x == "bfloat16" else x for x in arguments))

        return call

    operations = {
        "alloc_shared": shared,
        "alloc_fragment": T.alloc_local,
        "use_swizzle": lambda **_: None,
        "Tensor": wide(T.Tensor),
        "Parallel": T.grid,
        "Pipelined": lambda steps, **_: T.serial(steps),
        "copy": copy,
        "clear": lambda tile: fill(tile, *tile.shape),
        "gemm": lambda a, b, c, **_: multiply(a, b, c, *c.shape, a.shape[1]),
    }
    with mock.patch.multiple(T, **operations):
        yield


class Plain:
    """A program as a function of tensors on the CPU, by name."""

    def __init__(self, folder: Path, build: Callable[..., Any], *shape: Any) -> None:
        import tilelang
        from tilelang import tvm

        target = tvm.target.Target("c")
        with plain_tiles(), target:
            source = tilelang.lower(build(*shape, "float32"), target=target).kernel_source
        signature = re.search(r"int32_t (\w+)\(([^)]*)\) \{", source)
        assert signature is not None, source
        (folder / "kernel.cpp").write_text(f"#include <cmath>\n#include <cstdint>\n{source}")
        command = ("g++", "-O2", "-fPIC", "-shared", "kernel.cpp", "-o", "kernel.so")
        include = Path(tilelang.__file__).parent / "src"
        done = subprocess.run(
            [*command, f"-I{include}"], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        self.call = getattr(ctypes.CDLL(str(folder / "kernel.so")), signature[1])
        self.names = [part.split()[-1].lstrip("*") for part in signature[2].split(",")]

    def __call__(self, **values: torch.Tensor | int) -> None:
        self.call(
            *(
                ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else ctypes.c_int32(x)
                for x in (values[name] for name in self.names)
            )
        )
