"""Settings: pydantic models, the YAML files of ``configs/`` and the ``MATE_PLUGIN_*`` variables.

A variable wins over the file that ``MATE_PLUGIN_CONFIG`` names, which wins over the defaults.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError

PREFIX = "MATE_PLUGIN_"
# Variables that are read elsewhere and are not fields of Settings.
RESERVED = ("MATE_PLUGIN_CONFIG", "MATE_PLUGIN_ISA", "MATE_PLUGIN_IMPL")
GRANULARITIES = ((1, 128, 128), (1, 1, 128), (1, -1, -1), (-1, -1, -1))


class ConfigError(ValueError):
    """A setting is unknown or wrong; the message is one readable line."""


def _expected(what: str) -> PydanticCustomError:
    return PydanticCustomError("expected", "{what}", {"what": what})


def _whole_number(value: object) -> object:
    """Take the digits of an environment variable for a number, and no bool for one."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _expected("a whole number")
    return value


def _auto_or_whole_number(value: object) -> object:
    return value if value == "auto" else _whole_number(value)


WholeNumber = BeforeValidator(_whole_number)
Alignment = Annotated[Literal["auto", 1, 128, 256], BeforeValidator(_auto_or_whole_number)]


def _auto_or_switch(value: object) -> object:
    if value == "auto" or isinstance(value, bool):
        return value
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise _expected("auto, true or false") from None


def _auto_or_off(value: object) -> object:
    # YAML reads a bare off as false.
    known = {False: "off", "0": "off", "false": "off", "no": "off"}
    name = value.strip().lower() if isinstance(value, str) else value
    return known.get(name, name) if isinstance(name, (bool, str)) else value


Provider = Annotated[Literal["auto", "off"], BeforeValidator(_auto_or_off)]
Switch = Annotated[Literal["auto", True, False], BeforeValidator(_auto_or_switch)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class GpuSettings(_Section):
    """What the plugin takes over on GPUs of one kind, where engines have kernels of their own."""

    moe: bool = Field(default=False, description="serve FP8 MoE layers there too")
    linear: bool = Field(
        default=False, description="serve block-FP8 linear layers there too (vLLM)"
    )


# Kinds of devices with a section of that name.
GPUS = ("cuda", "musa")


class VllmSettings(_Section):
    """Which seams of vLLM the plugin fills."""

    moe: bool = Field(
        default=True, description="serve FP8 MoE layers; on GPUs with cuda.moe or musa.moe only"
    )
    linear: bool = Field(
        default=True,
        description="serve block-FP8 linear layers; on GPUs with cuda.linear or musa.linear only",
    )
    sparse: bool = Field(default=True, description="serve sparse attention and its indexer on CPUs")
    deep_gemm: Switch = Field(
        default="auto",
        description="score in vLLM's slots for DeepGEMM on GPUs; auto: on MUSA, not on NVIDIA",
    )


class SglangSettings(_Section):
    """Which seams of SGLang the plugin fills."""

    moe: Switch = Field(
        default="auto",
        description="offer the MoE runner backend mate; auto: where our kernels serve the device",
    )
    linear: Switch = Field(
        default="auto", description="serve block-FP8 linear layers; auto: on the platform mate_cpu"
    )
    shards: Switch = Field(
        default="auto",
        description="split weights without padding them; auto: on the platform mate_cpu",
    )
    attention: Switch = Field(
        default="auto",
        description="serve attention by mate_mha; auto: on the platform mate_cpu",
    )
    sparse: Switch = Field(
        default="auto",
        description="serve MLA and its indexer by mate_dsa; auto: on the platform mate_cpu",
    )
    indexer: Switch = Field(
        default="auto", description="give the DSA indexer a forward on MUSA; auto: there"
    )
    deep_gemm: Switch = Field(
        default="auto",
        description="score in SGLang's slots for DeepGEMM on GPUs; auto: on MUSA, not on NVIDIA",
    )
    moe_deep_gemm: bool = Field(
        default=False, description="on GPUs, also run what asks for the MoE runner deep_gemm"
    )


class Settings(_Section):
    """All settings of the plugin; :func:`settings` gives the ones in force."""

    enabled: bool = Field(default=True, description="switch the whole plugin on or off")
    strict: bool = Field(
        default=False, description="stop the engine when a hook cannot be installed"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="what the plugin logs"
    )
    gemm_mode: Literal["auto", "per_token", "psum_expert", "per_expert", "masked"] = Field(
        default="auto", description="layout of the grouped GEMMs of MoE layers"
    )
    scale_granularity: tuple[int, int, int] = Field(
        default=(1, 128, 128),
        description="quantisation granularity over (m, n, k); -1 is a whole dimension",
    )
    alignment_m: Alignment = Field(
        default="auto",
        description="row alignment of each expert (per_token, psum_expert); auto packs on CPU",
    )
    kernel: Literal["auto", "scalar", "avx2", "avx512", "avx512_bf16", "amx"] = Field(
        default="auto", description="instruction set of the CPU kernels"
    )
    vendor: Provider = Field(
        default="auto",
        description="Moore Threads' own mate package on MUSA; off leaves its kernels out",
    )
    activation: Literal["auto", "bf16", "fp8"] = Field(
        default="auto", description="what activations are rounded to; auto keeps 16 bits on CPU"
    )
    pack_weights: bool = Field(
        default=True,
        description="rearrange weights of MoE layers in memory where kernels are faster for it",
    )
    logits_budget_mb: Annotated[int, WholeNumber] = Field(
        default=512,
        gt=0,
        description="most memory (MiB) that the logits of one indexer call may take",
    )
    check: bool = Field(default=False, description="validate the contents of index tensors too")
    report: Path | None = Field(
        default=None, description="directory for one JSON of counters per process"
    )
    dump_selections: Path | None = Field(
        default=None, description="directory for one file per indexer call with what it selected"
    )
    cuda: GpuSettings = Field(
        default=GpuSettings(), description="what is taken over on NVIDIA GPUs"
    )
    musa: GpuSettings = Field(
        default=GpuSettings(), description="what is taken over on Moore Threads GPUs"
    )
    vllm: VllmSettings = Field(default=VllmSettings(), description="seams of vLLM")
    sglang: SglangSettings = Field(default=SglangSettings(), description="seams of SGLang")

    @field_validator("scale_granularity", mode="before")
    @classmethod
    def _granularity(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)):
            try:
                value = tuple(_whole_number(part) for part in parts)
            except PydanticCustomError:
                value = None
        if value not in GRANULARITIES:
            raise _expected("one of " + ", ".join(str(list(g)) for g in GRANULARITIES))
        return value

    @field_validator("report", "dump_selections", mode="before")
    @classmethod
    def _directory(cls, value: object) -> object:
        if isinstance(value, str):
            return Path(value).expanduser() if value.strip() else None
        return value


def shipped_configs() -> dict[str, Path]:
    """The YAML files that come with the package, by bare name."""
    package = Path(__file__).resolve().parent
    # A wheel carries the files inside the package, a checkout at its root.
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "default.yaml").is_file():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from ``environ`` (the process's own by default) and the file it names.

    Raises ConfigError with one line that names the source, the key, what was expected and found.
    """
    environ = os.environ if environ is None else environ
    variables = _variables()
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in variables and name not in RESERVED:
            raise ConfigError(_unknown("environment", "variable", name, [*variables, *RESERVED]))

    values: dict[str, Any] = {}
    file = ""
    if wanted := environ.get("MATE_PLUGIN_CONFIG", "").strip():
        path = find_config(wanted)
        file = str(path)
        values = _read_yaml(path)
        _refuse_unknown(file, values, Settings)

    overridden: dict[tuple[str, ...], str] = {}
    for name, keys in variables.items():
        if name in environ:
            section = values
            for key in keys[:-1]:
                section = section.setdefault(key, {})
            # A section that is no mapping is left as it is, for the model to refuse.
            if isinstance(section, dict):
                section[keys[-1]] = environ[name]
                overridden[keys] = name

    try:
        loaded = Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_readable(error, file, overridden)) from None
    _refuse_two_isas(loaded, environ, overridden.get(("kernel",), file))
    return loaded


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings in force, read once per process (``settings.cache_clear()`` reads anew)."""
    return load()


def find_config(name: str) -> Path:
    """Path of the file that MATE_PLUGIN_CONFIG names: a path, or a shipped file's bare name."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_configs()
    bare = name.removesuffix(".yaml")
    if bare in shipped:
        return shipped[bare]
    hint = _nearest(bare, shipped)
    raise ConfigError(
        f"MATE_PLUGIN_CONFIG: expected a file or one of {', '.join(shipped)}, found {name!r}{hint}"
    )


def _variables() -> dict[str, tuple[str, ...]]:
    """Each override variable and the keys that lead to its field."""
    found: dict[str, tuple[str, ...]] = {}

    def visit(model: type[BaseModel], keys: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for key, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from visit(field.annotation, (*keys, key))
            else:
                yield (*keys, key)

    for keys in visit(Settings, ()):
        found[PREFIX + "_".join(keys).upper()] = keys
    return found


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                continue
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {_shown(values)}")
    return values


def _refuse_unknown(
    file: str, values: dict[str, Any], model: type[BaseModel], at: str = ""
) -> None:
    for key, value in values.items():
        field = model.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            names = [at + name for name in model.model_fields]
            raise ConfigError(_unknown(file, "key", f"{at}{key}", names))
        kind = field.annotation
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            _refuse_unknown(file, value, kind, f"{at}{key}.")


def _nearest(name: str, valid: Any) -> str:
    close = difflib.get_close_matches(name.lower(), [v.lower() for v in valid], n=1, cutoff=0.0)
    original = {v.lower(): v for v in valid}
    return f"; did you mean {original[close[0]]!r}?" if close else ""


def _unknown(source: str, what: str, name: str, valid: list[str]) -> str:
    return f"{source}: unknown {what} {name!r}{_nearest(name, valid)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _readable(error: ValidationError, file: str, overridden: Mapping[tuple[str, ...], str]) -> str:
    problems = []
    for one in error.errors():
        keys = tuple(str(part) for part in one["loc"])
        source = overridden.get(keys, file)
        source = f"{source}: " if source else ""
        kind, context = one["type"], one.get("ctx", {})
        if kind == "extra_forbidden":
            problems.append(f"{source}unknown key {'.'.join(keys)!r}")
            continue
        if kind == "expected":
            expected = context["what"]
        elif kind == "literal_error":
            expected = "one of " + str(context["expected"]).replace(" or ", ", ")
        elif kind.startswith("bool"):
            expected = "true or false"
        elif kind == "greater_than":
            expected = f"a whole number above {context['gt']}"
        elif kind.startswith("model"):
            expected = "a mapping of keys"
        elif kind.startswith("path"):
            expected = "a path"
        else:
            expected = one["msg"]
        problems.append(
            f"{source}{'.'.join(keys)}: expected {expected}, found {_shown(one['input'])}"
        )
    return "; ".join(problems)


def _refuse_two_isas(loaded: Settings, environ: Mapping[str, str], source: str) -> None:
    isa = environ.get("MATE_PLUGIN_ISA", "")
    if isa and loaded.kernel not in ("auto", isa):
        raise ConfigError(
            f"{source}: kernel: expected {isa!r} or 'auto' since MATE_PLUGIN_ISA={isa}, "
            f"found {loaded.kernel!r}"
        )
