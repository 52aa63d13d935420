"""The compiled libraries: loading them, calling them, and their torch.library ops.

Each kind of device has a library of its own; both export the same entries. Every entry writes into
tensors that Python allocated and returns nothing. An op made by :func:`define` therefore needs no
hand-written fake. Eager calls go straight to the compiled function; under ``torch.compile`` the
same call becomes the opaque op ``mate_plugin::<name>``.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch

from mate_plugin.kernels import calls

LIBRARIES = {"cpu": "libmate_cpu.so", "cuda": "libmate_cuda.so", "musa": "libmate_musa.so"}
_COMPILERS = {"cuda": "nvcc 12.8 or newer", "musa": "the MUSA toolkit with its compiler mcc"}

_TAGS = {
    torch.float8_e4m3fn: 0,
    torch.float8_e5m2: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.float32: 4,
}
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
# Fake and functional tensors have no memory to hand over; they take torch's dispatcher.
PLAIN = (torch.Tensor, torch.nn.Parameter)
is_compiling = torch.compiler.is_compiling


class Counter(TypedDict):
    """Calls of one compiled entry in this process and the seconds spent inside them."""

    op: str
    impl: str
    calls: int
    seconds: float


def tag(dtype: torch.dtype) -> int:
    """Number by which the core knows an operand's dtype."""
    return _TAGS[dtype]


def threads(num_mp: int | None, tensor: torch.Tensor | None = None) -> int:
    """Processors for one call on ``tensor``, or on the host where there is none.

    On a CPU torch's own number of threads, or ``num_mp`` where that is smaller; while a graph is
    traced it is only noted what was asked for, and the call settles it. On other devices
    ``num_mp``, and 0 for all.
    """
    if is_compiling() or not (tensor is None or tensor.is_cpu):
        return num_mp or 0
    available = torch.get_num_threads()
    return available if num_mp is None else min(num_mp, available)


@torch.compiler.assume_constant_result
def torch_threads() -> int:
    """Torch's number of threads; a compiled graph keeps the number it was traced with."""
    return torch.get_num_threads()


def processors(device: torch.device) -> int:
    """What a schedule of work is made for: threads on a CPU, multiprocessors on a GPU."""
    return torch_threads() if device.type == "cpu" else _multiprocessors(device.type, device.index)


@torch.compiler.assume_constant_result
def _multiprocessors(kind: str, index: int | None) -> int:
    return int(getattr(torch, kind).get_device_properties(index).multi_processor_count)


def stream(tensor: torch.Tensor) -> int:
    """Handle of the stream that work on ``tensor`` is queued to; 0 on a CPU.

    Also 0 while a graph is traced: the op looks the stream up when it runs.
    """
    if tensor.is_cpu or is_compiling() or type(tensor) not in PLAIN:
        return 0
    kind = tensor.device.type  # is_cuda is true of musa tensors where torchada is imported
    if kind == "cuda":
        return _cuda_stream(tensor.get_device())
    if kind == "musa":
        return int(torch.musa.current_stream(tensor.get_device()).musa_stream)  # type: ignore[attr-defined]
    raise NotImplementedError(f"no kernels for device {kind!r} in this build")


def _current_cuda_stream(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream)


# What Triton and Inductor call too: without the object that torch.cuda builds around a stream.
_cuda_stream: Callable[[int], int] = getattr(
    torch._C, "_cuda_getCurrentRawStream", _current_cuda_stream
)


def find(name: str) -> Path | None:
    """A file of the package's folder ``lib``, or None where it was not built."""
    import mate_plugin

    for root in mate_plugin.__path__:
        path = Path(root) / "lib" / name
        if path.is_file():
            return path
    return None


def missing(device_type: str) -> str | None:
    """Why there is no library for a kind of device and how to get it; None where it is there."""
    name = LIBRARIES[device_type]
    if find(name):
        return None
    if device_type == "cpu":
        return f"{name} is missing: install mate-plugin with pip (a bare source tree has no core)"
    how = f"install mate-plugin from its sources where {_COMPILERS[device_type]} is"
    return f"{name} is missing ({build_note(device_type)}); {how}"


def build_note(device_type: str) -> str:
    """What the build left about the library of a kind of device."""
    note = find(Path(LIBRARIES[device_type]).with_suffix(".txt").name)
    return note.read_text().strip() if note else "the build left no word about it"


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


_loaded: dict[str, Any] = {}


def module(device_type: str = "cpu") -> Any:
    """The library of a kind of device, loaded at the first call.

    Raises:
        ImportError: there is no such library, or nothing that provides OpenMP.
        NotImplementedError: no library is known for the device.
        ValueError: ``MATE_PLUGIN_ISA`` names an instruction set that is unknown or not present.
    """
    found = _loaded.get(device_type)
    if found is None:
        found = _loaded[device_type] = _load(device_type)
    return found


def _load(device_type: str) -> Any:
    if device_type not in LIBRARIES:
        raise NotImplementedError(f"no kernels for device {device_type!r} in this build")
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        # tvm-ffi would compile a helper for old torch releases; its slower path needs none.
        os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    import tvm_ffi

    if reason := missing(device_type):
        raise ImportError(reason)
    if device_type == "cpu":
        _ensure_openmp()
    library = tvm_ffi.load_module(str(find(LIBRARIES[device_type])))
    if device_type == "cpu":
        library.isa()
    if library.implements_function("use_allocator"):
        library.use_allocator(functools.partial(_lend, device_type))
    return library


def _lend(device_type: str, size: int, index: int) -> Any:
    """Memory for the length of a call, from torch, whose allocator knows of captures."""
    import tvm_ffi

    memory = torch.empty(size, dtype=torch.uint8, device=torch.device(device_type, index))
    return tvm_ffi.from_dlpack(memory)


def modules() -> list[Any]:
    """The libraries loaded so far; the one of the CPU is always among them."""
    module()
    return list(_loaded.values())


def isa() -> str:
    """Name of the instruction set in use, for instance ``avx2``."""
    return str(module().isa())


def available_isas() -> list[str]:
    """Instruction sets this machine can run, best first."""
    return str(module().available_isas()).split(",")


def counters() -> list[Counter]:
    """Calls and time of each compiled entry since the process started or the last reset.

    On a GPU the time is what a call takes on the host, to queue its work.
    """
    rows: list[Counter] = []
    for library in modules():
        for line in str(library.counters()).splitlines():
            op, impl, number, nanoseconds = line.split("\t")
            seconds = int(nanoseconds) / 1e9
            rows.append(Counter(op=op, impl=impl, calls=int(number), seconds=seconds))
    for package in calls.every():
        rows += [
            Counter(op=op, impl=package.impl, calls=count, seconds=seconds)
            for op, count, seconds in package.counters()
        ]
    return sorted(rows, key=lambda row: (row["op"], row["impl"]))


def reset_counters() -> None:
    """Sets all counters of this process to zero."""
    for library in modules():
        library.reset_counters()
    for package in calls.every():
        package.reset()


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


def _compiled(kind: str, name: str, extras: int, count: int) -> Callable[..., Any]:
    """The entry in the library for a kind of device, called with the ``count`` arguments that
    :func:`define` says, of which it does not take the extras."""
    function: Callable[..., Any] = module(kind)[name]
    if kind == "musa":
        function = _handed_over(function)
    if not extras:
        return function
    taken = operator.itemgetter(*range(count - 2 - extras), -2, -1)
    return lambda *arguments: function(*taken(arguments))


def _handed_over(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beside a tensor tvm-ffi would ask torch for its stream, which torch_musa does not answer."""
    from tvm_ffi import from_dlpack

    def call(*arguments: Any) -> Any:
        return function(*(from_dlpack(a) if isinstance(a, torch.Tensor) else a for a in arguments))

    return call


def _routed(kind: str, name: str, extras: int, count: int) -> Callable[..., Any]:
    """Where packages come first, ours is loaded when a call needs it."""
    from mate_plugin.kernels.route import route

    load = functools.cache(lambda: _compiled(kind, name, extras, count))

    def ours(*arguments: Any) -> Any:
        return load()(*(map(_as_bytes, arguments) if _FP8_AS_BYTES else arguments))

    return route(name, kind, ours)


def _comes_first(kind: str) -> bool:
    """Whether packages may serve a kind of device before ours (:mod:`.route`), as calls begin."""
    return kind == "musa" or (kind == "cuda" and calls.wanted() == "tilelang")


def entry(name: str, extras: int = 0) -> Callable[..., Any]:
    """A compiled entry for eager calls; the first argument is a tensor, whose device it runs on.

    A library is loaded at the first call that needs it. On Moore Threads' device the vendor's own
    package comes first (:mod:`.route`). ``extras``: as for :func:`define`.
    """
    found: dict[str, Callable[..., Any]] = {}
    routed: set[str] = set()

    def direct(*arguments: Any) -> Any:
        first = arguments[0]
        kind = "cpu" if first.is_cpu else first.device.type
        function = found.get(kind)
        if function is None:
            count = len(arguments)
            make = _compiled
            if _comes_first(kind):
                routed.add(kind)
                make = _routed
            found[kind] = function = make(kind, name, extras, count)
        # Packages want them as they are.
        if _FP8_AS_BYTES and kind not in routed:
            arguments = tuple(_as_bytes(a) for a in arguments)
        return function(*arguments)

    direct.__name__ = direct.__qualname__ = name
    return direct


def define(name: str, signature: str, extras: int = 0) -> Callable[..., None]:
    """Makes a compiled entry callable from Python and from compiled graphs.

    Args:
        name: the entry's name in the libraries.
        signature: its torch schema without the name, for instance
            ``"(Tensor a, Tensor(a!) out, int num_threads, int stream) -> ()"``. The first argument
            is a tensor and the last two integers are always these.
        extras: how many arguments before those two the libraries do not take. They are what the
            published functions say that only the vendor's kernels use.

    Returns:
        A function of the same positional arguments.
    """
    direct = entry(name, extras)

    def from_graph(*arguments: Any) -> None:
        *operands, wanted, _ = arguments
        first = operands[0]
        direct(*operands, threads(wanted or None, first), stream(first))

    _torch_library.define(name + signature)
    # Moore Threads' device is one of torch's private kind.
    for key in ("CPU", "CUDA", "PrivateUse1"):
        _torch_library.impl(name, from_graph, key)
    torch.library.register_fake(f"mate_plugin::{name}", lambda *_: None, lib=_torch_library)
    op = getattr(torch.ops.mate_plugin, name).default

    def call(*arguments: Any) -> None:
        if is_compiling() or type(arguments[0]) not in PLAIN:
            op(*arguments)
        else:
            direct(*arguments)

    call.__name__ = call.__qualname__ = name
    return call
