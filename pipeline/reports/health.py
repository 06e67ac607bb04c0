"""The doctor's findings on a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from denoise_batch.kernels.kernel_check import KernelCheck

from ..doctor import Check

_SIGNS = {
    "ok": "[green]✓[/]",
    "note": "[yellow]·[/]",
    "problem": "[red]✗[/]",
    "unavailable": "[yellow]·[/]",
    "failed": "[red]✗[/]",
}


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """One table, a section for each topic."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("checked", no_wrap=True)
    table.add_column("found", overflow="fold")
    topic = None
    for check in checks:
        if check.topic != topic:
            if topic is not None:
                table.add_section()
            topic = check.topic
            table.add_row("", f"[bold]{topic}[/]", "")
        table.add_row(_SIGNS[check.state], escape(check.name), escape(check.detail))
    console.print(table)


def print_kernels(kernels: Sequence[KernelCheck], console: Console) -> None:
    """One table: a line for each kernel and precision."""
    if not kernels:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("kernel", overflow="fold")
    table.add_column("by", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    for kernel in kernels:
        error = "–" if kernel.error is None else f"{kernel.error:.1e}"
        name = escape(kernel.name)
        if kernel.reason:
            name += f"\n[dim]{escape(kernel.reason)}[/]"
        table.add_row(
            _SIGNS[kernel.status], name, kernel.implementation, error, f"{kernel.tolerance:.0e}"
        )
    console.print(table)
