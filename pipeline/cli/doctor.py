"""`denoise-doctor`: check the machine and the installation; the exit code gives the verdict."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..text import printable, valid
from .command import PlainCommand, Version, exit_codes, new_app, require_output, run_app

if TYPE_CHECKING:
    from rich.table import Table

    from denoise_batch.kernels.kernel_check import KernelCheck

    from ..doctor import Check

app = new_app()

EXAMPLES = """[bold]Examples[/]

[cyan]denoise-doctor[/]  checks the device that denoise-batch would use

[cyan]denoise-doctor --device cuda --json[/]  a GPU, for a script
"""

UNHEALTHY = 1
_SIGNS = {
    "ok": "[green]✓[/]",
    "note": "[yellow]·[/]",
    "problem": "[red]✗[/]",
    "unavailable": "[yellow]·[/]",
    "failed": "[red]✗[/]",
}


@app.command(cls=PlainCommand, epilog=EXAMPLES)
def doctor(
    device: Annotated[
        str,
        typer.Option("--device", "-d", help="Device to test: auto, cpu, cuda, cuda:N, mps or xpu."),
    ] = "auto",
    kernels: Annotated[
        bool, typer.Option(help="Compare every kernel with the reference implementation.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    show_version: Version = False,
) -> None:
    """Check software, devices, extras and weights, and that this machine computes correct results.

    Exit codes: 0 healthy, 1 something does not work, 4 the device is missing.
    """
    with exit_codes():
        from dataclasses import asdict

        from rich.console import Console

        from ..device import resolve_device
        from ..doctor import computing, examine, is_healthy, kernel_checks

        where = resolve_device(device)
        console = Console(emoji=False)
        checks = list(examine(where))
        if not as_json:
            console.print(_checks_table(checks))
        tested = kernel_checks(where) if kernels else []
        healthy = is_healthy(checks, tested)
        if as_json:
            document = {
                "format": "denoise-batch doctor",
                "schema": 1,
                "healthy": healthy,
                "computing": computing(where),
                "checks": [asdict(check) for check in checks],
                "kernels": [asdict(kernel) for kernel in tested],
            }
            typer.echo(json.dumps(valid(document), indent=1, ensure_ascii=False))
        else:
            if tested:
                console.print(_kernels_table(tested))
            used = f"Computing on {where}: {computing(where)}"
            console.print(used, highlight=False, markup=False, soft_wrap=True)
            verdict = "[green]healthy[/]" if healthy else "[red]not healthy[/]: see above"
            console.print(verdict, highlight=False)
        require_output()
        raise typer.Exit(0 if healthy else UNHEALTHY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `denoise-doctor`; return the exit code."""
    return run_app(app, arguments)


def _checks_table(checks: Sequence["Check"]) -> "Table":
    """One row per check, one section per topic."""
    from rich.markup import escape

    table = _table("", "checked", "found")
    topic = None
    for check in checks:
        if check.topic != topic:
            if topic is not None:
                table.add_section()
            topic = check.topic
            table.add_row("", f"[bold]{topic}[/]", "")
        table.add_row(_SIGNS[check.state], escape(check.name), escape(printable(check.detail)))
    return table


def _kernels_table(kernels: Sequence["KernelCheck"]) -> "Table":
    """One row per kernel and precision."""
    from rich.markup import escape

    table = _table("", "kernel", "implementation", "error", "allowed")
    for kernel in kernels:
        error = "–" if kernel.error is None else f"{kernel.error:.1e}"
        name = escape(kernel.name)
        if kernel.reason:
            name += f"\n[dim]{escape(kernel.reason)}[/]"
        table.add_row(
            _SIGNS[kernel.status], name, kernel.implementation, error, f"{kernel.tolerance:.0e}"
        )
    return table


def _table(*headings: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(*headings, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    return table
