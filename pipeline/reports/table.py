"""What a run of denoise-batch shows on a terminal: one table and a line of totals."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..streaming.denoise import Summary
from ..streaming.result import Result

MOST_ROWS = 60
MOST_NOTES = 20


def print_summary(summary: Summary, console: Console) -> None:
    """Images up to `MOST_ROWS` lines, notes, every failure in full, and the totals."""
    shown = _shown(summary.results)
    console.print(_table(summary.results, shown))
    if len(shown) < len(summary.results):
        console.print(f"{len(summary.results) - len(shown)} more images are not shown")
    notes = [note for result in summary.results for note in result.notes]
    for note in notes[:MOST_NOTES]:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if len(notes) > MOST_NOTES:
        console.print(f"{len(notes) - MOST_NOTES} more notes are not shown")
    for result in summary.results:
        if result.status == "failed":
            line = f"[red]failed[/red] {escape(result.reason)}"
            console.print(line, highlight=False, soft_wrap=True)
    console.print(totals(summary), markup=False, highlight=False, soft_wrap=True)


def totals(summary: Summary) -> str:
    """Counts, megapixels, seconds and speed in one line."""
    by_status = {"done": 0, "skipped": 0, "failed": 0}
    for result in summary.results:
        by_status[result.status] += 1
    counts = [f"{n} {status}" for status, n in by_status.items() if n or status == "done"]
    if summary.left:
        counts.append(f"{summary.left} left for the next run")
    megapixels = summary.megapixels
    speed = f", {megapixels / summary.seconds:.1f} MP/s" if megapixels and summary.seconds else ""
    interrupted = "interrupted: " if summary.is_interrupted else ""
    hint = " (--overwrite denoises again)" if by_status["skipped"] else ""
    return (
        f"{interrupted}{', '.join(counts)}{hint}; {megapixels:.1f} MP in {summary.seconds:.1f} s"
        f"{speed} on {summary.device}"
    )


def _table(results: Sequence[Result], shown: Sequence[Result]) -> Table:
    scored = _scored(results)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    if scored:
        for heading in ("PSNR in", "PSNR out", "gain"):
            table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for result in shown:
        table.add_row(*_row(result, bool(scored)))
    if scored:
        mean_in = sum(psnr_in for psnr_in, _ in scored) / len(scored)
        mean_out = sum(psnr_out for _, psnr_out in scored) / len(scored)
        gain = f"[bold]{mean_out - mean_in:+.2f}[/bold]"
        table.add_section()
        title = f"[bold]mean of {len(scored)}[/bold]"
        table.add_row(title, "", f"{mean_in:.2f}", f"[bold]{mean_out:.2f}[/bold]", gain, "")
    return table


def _shown(results: Sequence[Result]) -> list[Result]:
    """At most MOST_ROWS results in their order, failures before all others."""
    order = sorted(range(len(results)), key=lambda i: (results[i].status != "failed", i))
    return [results[i] for i in sorted(order[:MOST_ROWS])]


def _row(result: Result, has_scores: bool) -> list[str]:
    size = f"{result.size[0]}×{result.size[1]}" if result.size else ""
    row = [escape(result.job.name), size]
    if has_scores:
        if result.psnr_in is None or result.psnr_out is None:
            row += ["–", "–", "–"]
        else:
            gain = result.psnr_out - result.psnr_in
            colour = "green" if gain > 0 else "red"
            row += [f"{result.psnr_in:.2f}", f"{result.psnr_out:.2f}"]
            row += [f"[{colour}]{gain:+.2f}[/{colour}]"]
    skipped = f"skipped ({escape(result.reason)})"
    status = {"done": "done", "failed": "[red]failed[/red]", "skipped": skipped}
    return [*row, status[result.status]]


def _scored(results: Sequence[Result]) -> list[tuple[float, float]]:
    return [
        (result.psnr_in, result.psnr_out)
        for result in results
        if result.psnr_in is not None and result.psnr_out is not None
    ]
