"""The command ``mate-plugin``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from mate_plugin import __version__
from mate_plugin.config import ConfigError

app = typer.Typer(
    name="mate-plugin",
    help="FP8 kernels behind the mate API, and the plugin that serves models with them in vLLM and "
    "SGLang.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mate-plugin {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(
    device: Annotated[
        str | None,
        typer.Option(
            help="cuda or musa: try every function on that GPU, by each implementation there is, "
            "and write a report."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Where to, instead of mate-plugin-DEVICE.json in this folder."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="A checkout to build the device's library from, where it is missing."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build the library though there is one.")
    ] = False,
    timed: Annotated[
        bool, typer.Option("--timed/--untimed", help="Measure too, at the size of a served model.")
    ] = True,
) -> None:
    """Look at machine, core, torch and engines; say what is wrong and how to mend it."""
    from mate_plugin.doctor import examine, show

    if device is None:
        if report or source or rebuild:
            raise _refused("--report, --source and --rebuild: expected --device beside them", 2)
        raise typer.Exit(show(examine()))
    from mate_plugin.trial import build
    from mate_plugin.trial.report import Examination
    from mate_plugin.trial.run import IMPLS

    if device not in IMPLS:
        raise _refused(f"--device: expected one of {', '.join(IMPLS)}, got {device!r}", 2)
    path = report or Path(f"mate-plugin-{device}.json")
    if not path.parent.is_dir():
        raise _refused(f"--report: expected a file in a folder that exists, got {path}", 2)
    if source is not None and not (source / "CMakeLists.txt").is_file():
        raise _refused(f"--source: expected a checkout with a CMakeLists.txt, got {source}", 2)
    examination = Examination(device, source or build.sources(), rebuild, timed)
    try:
        status = show(examination.run())
    finally:
        examination.write(path)
        typer.echo(f"The report is in {path}")
    raise typer.Exit(status)


@app.command()
def explain() -> None:
    """Try the hooks in this process and say which are installed, and why or why not."""
    from mate_plugin import report
    from mate_plugin.doctor_engines import ENGINES

    for engine in [engine for engine in ENGINES if engine.version()] or ENGINES:
        importlib.import_module(engine.hooks).install()
    typer.echo(report.explain())


@app.command()
def demo(
    model: Annotated[
        str,
        typer.Option(
            help="deepseek-v3, deepseek-v3.2, qwen3-moe, or the folder of a block-FP8 checkpoint."
        ),
    ] = "deepseek-v3",
    engine: Annotated[
        str | None,
        typer.Option(help="vllm or sglang; else the first of them that is installed."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What to ask instead of a question that fits the model.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 48,
    size: Annotated[
        str, typer.Option(help="Size of the checkpoint that is written: tiny or small.")
    ] = "small",
    eager: Annotated[
        bool,
        typer.Option(
            "--eager/--compile", help="Run without torch.compile, or with it (vLLM only)."
        ),
    ] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Keep checkpoint and server log.")] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that the server may take to start.")
    ] = 600.0,
) -> None:
    """Serve an FP8 model with vLLM or SGLang on this machine, ask it, and show what ran."""
    from mate_plugin.demo.inspect import CheckpointError
    from mate_plugin.demo.run import DemoError, DemoOptions, run_demo

    options = DemoOptions(model, prompt, max_tokens, size, eager, keep, port, timeout, engine)
    try:
        run_demo(options)
    except (CheckpointError, DemoError) as error:
        raise _refused(str(error), 1) from None
    except KeyboardInterrupt:
        raise _refused("interrupted", 130) from None


def _refused(line: str, status: int) -> typer.Exit:
    typer.echo(f"mate-plugin: {line}", err=True)
    return typer.Exit(status)


def main() -> None:
    """Entry point; a broken setting ends it with one line."""
    try:
        app()
    except ConfigError as error:
        typer.echo(f"mate-plugin: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
