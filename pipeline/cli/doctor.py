"""`denoise-doctor`: what this machine can do, checked; the exit code says whether all is well."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from .command import exit_codes, run_app

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)

UNHEALTHY = 1


@app.command()
def doctor(
    device: Annotated[
        str, typer.Option("--device", "-d", help="To test: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    kernels: Annotated[
        bool, typer.Option(help="Hold every kernel against the plain implementation.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Check the installation: software, devices, extras, weights, and that results are right.

    Exit codes: 0 healthy, 1 something does not work, 4 the device is missing.
    """
    with exit_codes():
        from dataclasses import asdict

        from rich.console import Console

        from ..device import resolve_device
        from ..doctor import examine, is_healthy, kernel_checks
        from ..reports.health import print_checks, print_kernels

        where = resolve_device(device)
        console = Console()
        checks = list(examine(where))
        if not as_json:
            print_checks(checks, console)
        tested = kernel_checks(where) if kernels else []
        healthy = is_healthy(checks, tested)
        if as_json:
            document = {
                "format": "denoise-batch doctor",
                "schema": 1,
                "healthy": healthy,
                "checks": [asdict(check) for check in checks],
                "kernels": [asdict(kernel) for kernel in tested],
            }
            typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
        else:
            print_kernels(tested, console)
            verdict = "[green]healthy[/]" if healthy else "[red]not healthy[/]: see above"
            console.print(verdict, highlight=False)
        raise typer.Exit(0 if healthy else UNHEALTHY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `denoise-doctor`; returns the exit code."""
    return run_app(app, arguments)
