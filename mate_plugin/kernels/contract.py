"""Shape contracts: one line per argument states its dtype, shape and layout, and is enforced.

    check = contract(
        "gemm",
        "a: fp8 [M, K] rows",
        "a_scale: f32 [M, KB] major",
        "b: fp8 [N, K] rows",
        "out: bf16|fp16 [M, N] out",
        where={"KB": "ceil_div(K, gran_k)"},
    )
    check(a, a_scale, b, out, gran_k)

A name binds where it first appears and must agree afterwards. Names of ``where`` follow from the
others; what they mention and no shape binds (``gran_k``) is an argument after the tensors.

Shapes: ``[M, K]``, or ``one`` for a tensor of one element and any rank. Words after the shape:

    any          any strides (the default)
    rows         the last dimension is contiguous, the others have any stride
    cols         the last but one dimension is contiguous
    major        one of these two is contiguous
    contiguous   the whole tensor is
    out          as rows, no two elements coincide, and no memory is shared with another argument
    inplace      may be the very tensor that is written
    optional     may be None

Each contract becomes one function, generated here, of plain comparisons: a call costs a fraction
of a microsecond per tensor and torch.compile traces it. Only a failure interprets the contract
again (:mod:`.contract_errors`), to say which argument it was, what was expected and what came.
"""

from __future__ import annotations

import functools
import keyword
import linecache
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from mate_plugin.kernels import select
from mate_plugin.kernels.contract_errors import Argument, Rule, ceil_div, explain
from mate_plugin.kernels.memory import overlaps, overlaps_itself

DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "fp8": (torch.float8_e4m3fn, torch.float8_e5m2),
    "e4m3": (torch.float8_e4m3fn,),
    "bf16": (torch.bfloat16,),
    "fp16": (torch.float16,),
    "f32": (torch.float32,),
    "i32": (torch.int32,),
    "i64": (torch.int64,),
    "u8": (torch.uint8,),
}
_LAYOUTS = ("any", "rows", "cols", "major", "contiguous", "out")
_LINE = re.compile(r"(?P<name>\S+): (?P<dtypes>\S+) (?P<dims>\[.*?\]|one)(?P<words>( \w+)*)")


def _parse(line: str) -> Argument:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"not a contract line: {line!r}")
    words = match["words"].split()
    layout = next((word for word in words if word in _LAYOUTS), "any")
    flags = [word for word in words if word != layout]
    if not set(flags) <= {"optional", "inplace"}:
        raise ValueError(f"unknown word in contract line {line!r}")
    dims = match["dims"]
    return Argument(
        name=match["name"],
        dtypes=tuple(dtype for key in match["dtypes"].split("|") for dtype in DTYPES[key]),
        dims=None if dims == "one" else tuple(re.findall(r"\w+", dims)),
        layout=layout,
        optional="optional" in flags,
        inplace="inplace" in flags,
    )


class _Spec:
    """The parsed contract, which writes the checking function."""

    def __init__(self, op: str, lines: tuple[str, ...], where: Mapping[str, str]) -> None:
        self.op = op
        self.args = [_parse(line) for line in lines]
        self.where = dict(where)
        bound = {dim for arg in self.args for dim in arg.dims or ()}
        mentioned = re.findall(r"\b[a-z]\w*", " ".join(self.where.values()))
        known = {"ceil_div", *keyword.kwlist, *bound}
        self.params = [name for name in dict.fromkeys(mentioned) if name not in known]

    def source(self) -> str:
        tensors = [f"x{i}" for i in range(len(self.args))]
        known: set[str] = set()
        body: list[str] = []
        for i, arg in enumerate(self.args):
            tests = list(self._tests(i, arg, known))
            if arg.optional:
                tests = [f"if x{i} is not None:", *("    " + test for test in tests)]
            body += tests
        body += [
            f"if not on_cpu: require({self.op!r}, x0.device)",
            "if is_dynamo_compiling() or type(x0) not in plain: return",
        ]
        for i, arg in enumerate(self.args):
            if arg.layout == "out":
                others = [x for j, x in enumerate(tensors) if j != i and not self.args[j].inplace]
                twins = [x for j, x in enumerate(tensors) if self.args[j].inplace]
                given = f"x{i} is not None and " if arg.optional else ""
                tests = [f"overlaps(x{i}, ({', '.join(others)},))"]
                tests += [f"overlaps(x{i}, ({', '.join(twins)},), True)"] if twins else []
                body += [f"if {given}{test}: break" for test in tests]
        # One pass of a loop: a failed test breaks out to the explanation. So does a tensor without
        # strides or memory, by way of torch's RuntimeError.
        params = "".join(p + ", " for p in self.params)
        lines = [
            f"def check({', '.join(tensors + self.params)}):",
            "    try:",
            "        while True:",
            *("            " + line for line in body),
            "            return",
            "    except RuntimeError: pass",
            f"    explain(({', '.join(tensors)},), ({params}))",
        ]
        return "\n".join(lines)

    def rules(self) -> Iterator[str]:
        """Each name of ``where`` as a function of a mapping, for the explanation."""

        def lookup(match: re.Match[str]) -> str:
            word = match[0]
            return word if keyword.iskeyword(word) or word == "ceil_div" else f"sizes[{word!r}]"

        for dim, text in self.where.items():
            yield f"rules[{dim!r}] = lambda sizes: {re.sub(r'[A-Za-z_]+', lookup, text)}"

    def _tests(self, i: int, arg: Argument, known: set[str]) -> Iterator[str]:
        x = f"x{i}"
        yield f"if not isinstance({x}, Tensor) or {x}.dtype not in dtypes{i}: break"
        if i == 0:
            yield "on_cpu = x0.is_cpu"
        else:
            yield f"if {x}.is_cpu != on_cpu or not on_cpu and {x}.device != x0.device: break"
        if arg.dims is None:
            yield f"if {x}.numel() != 1: break"
            return
        yield f"shape = {x}.shape"
        yield f"if len(shape) != {len(arg.dims)}: break"
        sizes = [f"s{j}" for j in range(len(arg.dims))]
        yield f"{', '.join(sizes)}, = shape"
        for size, dim in zip(sizes, arg.dims, strict=True):
            if dim in self.where and dim not in known:
                yield f"{dim} = {self.where[dim]}"
                known.add(dim)
            if dim in known or dim.isdigit():
                yield f"if {size} != {dim}: break"
            elif arg.optional:
                raise ValueError(f"{arg.name} is optional and cannot bind {dim}")
            else:
                yield f"{dim} = {size}"
                known.add(dim)
        # Contiguous tensors satisfy every layout but cols, and that test is the cheapest.
        last, before = sizes[-1], sizes[-2:][0]
        strided = {
            "rows": f"{last} > 1 and {x}.stride(-1) != 1",
            "cols": f"{before} > 1 and {x}.stride(-2) != 1 and {x}.numel() > 0",
            "major": f"{last} > 1 and {before} > 1 and {x}.stride(-1) != 1 and {x}.stride(-2) != 1",
            "contiguous": "True",
            "out": f"({last} > 1 and {x}.stride(-1) != 1 or overlaps_itself({x}))",
        }
        if arg.layout in strided:
            guard = "" if arg.layout == "cols" else f"not {x}.is_contiguous() and "
            yield f"if {guard}{strided[arg.layout]}: break"


def contract(op: str, *lines: str, where: Mapping[str, str] | None = None) -> Callable[..., None]:
    """Compile the lines into a function that raises unless its arguments satisfy them.

    The function takes one value per line and then the free names of ``where`` in their order of
    appearance. It raises TypeError for a value that is no tensor or has a wrong dtype, ValueError
    for the rest, and passes tensors of a device without implementation of ``op`` to
    :func:`mate_plugin.kernels.select.require`.
    """
    spec = _Spec(op, lines, where or {})
    rules: dict[str, Rule] = {}
    names = {
        "Tensor": torch.Tensor,
        # Fake and functional tensors have no memory that could overlap.
        "plain": (torch.Tensor, torch.nn.Parameter),
        "is_dynamo_compiling": torch.compiler.is_dynamo_compiling,
        "ceil_div": ceil_div,
        "overlaps": overlaps,
        "overlaps_itself": overlaps_itself,
        "require": select.require,
        "explain": functools.partial(explain, op, spec.args, spec.where, rules, spec.params),
        "rules": rules,
        **{f"dtypes{i}": arg.dtypes for i, arg in enumerate(spec.args)},
    }
    body = "".join(f"    {line}\n" for line in [*spec.rules(), *spec.source().splitlines()])
    text = f"def build({', '.join(names)}):\n{body}    return check\n"
    filename = f"<contract {op} {' '.join(lines)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    scope: dict[str, Any] = {}
    exec(compile(text, filename, "exec"), scope)
    check: Callable[..., None] = scope["build"](**names)
    check.__doc__ = "\n".join(lines)
    return check
