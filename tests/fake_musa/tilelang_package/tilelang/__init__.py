"""A stand-in for Moore Threads' build of TileLang: what is compiled computes in plain torch.

Nothing of a program but its arguments is looked at. ``compiled`` keeps those of each, ``streams``
the streams that torch and tvm-ffi named at each call. ``broken`` is what the next compiling raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import tvm_ffi

from mate_plugin.kernels.reference import gemm as oracle

__version__ = "0.1.6+musa"
PassConfigKey = SimpleNamespace(TL_DISABLE_FAST_MATH="fast", TL_DISABLE_TMA_LOWER="tma")
compiled: list[dict[str, Any]] = []
streams: list[tuple[int, int]] = []
broken: list[Exception] = []


def compile(
    program: Callable[..., None], target: str, pass_configs: dict[str, bool]
) -> Callable[..., None]:
    """A function of the program's tensors."""
    if broken:
        raise broken.pop()
    assert target == "musa -arch=mp_31"
    assert pass_configs == {"fast": True, "tma": True}
    shape = dict(inspect.getclosurevars(program).nonlocals)
    compiled.append(shape)

    def run(*tensors: torch.Tensor) -> None:
        import torch_musa

        stream = torch_musa.current_stream().musa_stream
        streams.append((stream, tvm_ffi.get_raw_stream(tvm_ffi.device("ext_dev", 0))))
        torch_musa.launch(lambda: _on_host(shape, *tensors))

    return run


def _on_host(*arguments: Any) -> None:
    with torch.device("cpu"):
        _write(*arguments)


def _write(
    shape: dict[str, Any],
    a: torch.Tensor,
    sa: torch.Tensor,
    b: torch.Tensor,
    sb: torch.Tensor,
    info: torch.Tensor,
    out: torch.Tensor,
) -> None:
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    experts, n, k = b.shape
    groups, rows, _ = a.shape
    assert (experts, n, -(-k // 128)) == (shape["experts"], shape["n"], shape["k_blocks"])
    assert out.shape == (groups, rows, n)
    assert sa.shape == (groups, rows, -(-k // 128))
    there, a, sa, b, sb, info = out, a.cpu(), sa.cpu(), b.cpu(), sb.cpu(), info.cpu()
    out = there.cpu()
    if shape["layout"] == "masked":
        used = torch.arange(rows) < info[:, None]
        result = oracle.masked((a, sa), (b, sb), info)
    else:
        ids = oracle.expert_of_row(info, rows, shape["layout"], shape["alignment"])
        used = ids[None] >= 0
        result = oracle.ragged_m((a[0], sa[0]), (b, sb), ids)[None]
    out[used] = result[used].to(out.dtype)
    there.copy_(out)
