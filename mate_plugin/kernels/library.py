"""The compiled core: loading it, calling it, and its torch.library ops.

Every compiled entry writes into tensors that Python allocated and returns nothing. An op made by
:func:`define` therefore needs no hand-written fake. Eager calls go straight to the compiled
function; under ``torch.compile`` the same call becomes the opaque op ``mate_plugin::<name>``.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch

CPU_LIBRARY = "libmate_cpu.so"

# Units in which the masked GEMM counts the overlap signal: rows and columns of one block.
SIGNAL_BLOCK_M = 128
SIGNAL_BLOCK_N = 128

_TAGS = {
    torch.float8_e4m3fn: 0,
    torch.float8_e5m2: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.float32: 4,
}
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


class Counter(TypedDict):
    """Calls of one compiled entry in this process and the seconds spent inside them."""

    op: str
    impl: str
    calls: int
    seconds: float


def tag(dtype: torch.dtype) -> int:
    """Number by which the core knows an operand's dtype."""
    return _TAGS[dtype]


def threads(num_mp: int | None) -> int:
    """Threads for one call: torch's own number, or ``num_mp`` where that is smaller.

    While a graph is traced it is only noted what was asked for: the call settles it.
    """
    if torch.compiler.is_compiling():
        return num_mp or 0
    available = torch.get_num_threads()
    return available if num_mp is None else min(num_mp, available)


@torch.compiler.assume_constant_result
def torch_threads() -> int:
    """Torch's number of threads; a compiled graph keeps the number it was traced with."""
    return torch.get_num_threads()


def stream(tensor: torch.Tensor) -> int:
    """Handle of the stream that work on ``tensor`` is queued to; 0 on a CPU."""
    if tensor.is_cpu:
        return 0
    raise NotImplementedError(f"no kernels for device {tensor.device.type!r} in this build")


def _path() -> Path:
    import mate_plugin

    candidates = [Path(root) / "lib" / CPU_LIBRARY for root in mate_plugin.__path__]
    for path in candidates:
        if path.is_file():
            return path
    raise ImportError(
        f"{CPU_LIBRARY} is missing from {[str(p.parent) for p in candidates]}: "
        "install mate-plugin with pip (a bare source tree has no compiled core)"
    )


def _ensure_openmp() -> None:
    # The core is not linked with an OpenMP runtime so that it shares torch's. Where torch was
    # built without one, a call would fail deep inside the core; take the system's instead.
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        try:
            ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ImportError(
                "torch brought no OpenMP runtime and libgomp.so.1 is not installed"
            ) from error


@functools.cache
def module() -> Any:
    """The loaded core.

    Raises:
        ImportError: there is no core, or nothing that provides OpenMP.
        ValueError: ``MATE_PLUGIN_ISA`` names an instruction set that is unknown or not present.
    """
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        # tvm-ffi would compile a helper for old torch releases; its slower path needs none.
        os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    import tvm_ffi

    _ensure_openmp()
    core = tvm_ffi.load_module(str(_path()))
    core.isa()
    return core


def isa() -> str:
    """Name of the instruction set in use, for instance ``avx2``."""
    return str(module().isa())


def available_isas() -> list[str]:
    """Instruction sets this machine can run, best first."""
    return str(module().available_isas()).split(",")


def counters() -> list[Counter]:
    """Calls and time of each compiled entry since the process started or the last reset."""
    impl = isa()
    rows: list[Counter] = []
    for line in str(module().counters()).splitlines():
        op, calls, nanoseconds = line.split("\t")
        if int(calls):
            rows.append(Counter(op=op, impl=impl, calls=int(calls), seconds=int(nanoseconds) / 1e9))
    return sorted(rows, key=lambda row: row["op"])


def reset_counters() -> None:
    """Sets all counters of this process to zero."""
    module().reset_counters()


def _exports_fp8() -> bool:
    try:
        torch.utils.dlpack.to_dlpack(torch.empty(1, dtype=torch.float8_e4m3fn))
    except (BufferError, RuntimeError):
        return False
    return True


# An old torch refuses to hand FP8 tensors over; their bytes carry the same information.
_FP8_AS_BYTES = not _exports_fp8()

_torch_library = torch.library.Library("mate_plugin", "DEF")


def _as_bytes(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor) and argument.dtype in FP8_DTYPES:
        return argument.view(torch.uint8)
    return argument


def define(name: str, signature: str) -> Callable[..., None]:
    """Makes a compiled entry callable from Python and from compiled graphs.

    Args:
        name: the entry's name in the core.
        signature: its torch schema without the name, for instance
            ``"(Tensor a, Tensor(a!) out, int num_threads, int stream) -> ()"``. The last two
            integers are always these.

    Returns:
        A function of the same positional arguments. The core is loaded at the first call.
    """

    @functools.cache
    def entry() -> Callable[..., None]:
        return module()[name]

    def direct(*arguments: Any) -> None:
        if _FP8_AS_BYTES:
            arguments = tuple(_as_bytes(a) for a in arguments)
        entry()(*arguments)

    def from_graph(*arguments: Any) -> None:
        *operands, wanted, queue = arguments
        direct(*operands, threads(wanted or None), queue)

    _torch_library.define(name + signature)
    _torch_library.impl(name, from_graph, "CPU")
    torch.library.register_fake(f"mate_plugin::{name}", lambda *_: None, lib=_torch_library)
    op = getattr(torch.ops.mate_plugin, name).default

    def call(*arguments: Any) -> None:
        if torch.compiler.is_compiling() or not _is_plain(arguments[0]):
            op(*arguments)
        else:
            direct(*arguments)

    call.__name__ = call.__qualname__ = name
    return call


def _is_plain(tensor: torch.Tensor) -> bool:
    # Fake and functional tensors have no memory to hand over; they take torch's dispatcher.
    return type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter
