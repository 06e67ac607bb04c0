"""`denoise-batch --verify`: what is shown of it."""

import time

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..options import DenoiseOptions
from ..progress import Stop
from ..streaming.manifest import Storage
from ..streaming.verify import BAD, Check, verify
from ..text import printable
from .console import MOST_ROWS, Bars, Display, JsonLines, Quiet
from .streams import lost_output

_COLOUR = {"unknown": "yellow"}


def show_verification(options: DenoiseOptions, storage: Storage, stop: Stop, shown: Display) -> int:
    """Verify all outputs and show what is not as it was written; return the exit code.

    JSON: a `verify` event for each output (with `--quiet`, for each bad one), then `end`.
    Otherwise: a table, and a line of totals.

    Raises:
        OptionError: there is nothing to verify.
    """
    lines = shown if isinstance(shown, JsonLines) else None
    quiet = lines.quiet if lines else isinstance(shown, Quiet)
    counts: dict[str, int] = dict.fromkeys(("whole", *BAD, "unknown"), 0)
    rows: list[Check] = []
    read, started = 0, time.perf_counter()
    for check in verify(options, storage, stop):
        counts[check.state] += 1
        read += check.size
        if lines is not None:
            if not quiet or check.state in BAD:
                lines.show_check(check)
        elif check.state in BAD or (check.state != "whole" and not quiet):
            rows.append(check)
    bad = sum(counts[state] for state in BAD)
    code = 128 + stop.signal if stop.signal is not None else int(bad > 0)
    seconds = time.perf_counter() - started
    if lines is not None:
        lines.show_verified(counts, read, seconds, stop.signal, code)
    elif not quiet or bad:
        if isinstance(shown, Bars):
            shown.live.stop()
        _print(rows, counts, read, seconds, is_cut=stop.signal is not None)
    return code or int(lost_output())


def _print(
    rows: list[Check], counts: dict[str, int], read: int, seconds: float, *, is_cut: bool
) -> None:
    console = Console(emoji=False)
    if rows:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("state")
        table.add_column("output", overflow="fold")
        table.add_column("why", overflow="fold")
        rows.sort(key=lambda check: check.state == "unknown")  # bad ones first
        for check in rows[:MOST_ROWS]:
            colour = _COLOUR.get(check.state, "red")
            name, why = escape(printable(check.path)), escape(printable(check.reason))
            table.add_row(f"[{colour}]{check.state}[/]", name, why)
        console.print(table)
    more = f"{len(rows) - MOST_ROWS} more not shown (--log json has all)"
    told = [f"{number} {state}" for state, number in counts.items() if number or state == "whole"]
    interrupted = "interrupted: " if is_cut else ""
    total = f"{interrupted}{', '.join(told)}; {read / 1e6:.1f} MB in {seconds:.1f} s"
    mend = "delete what is not whole and run again: it is made again"
    is_bad = any(counts[state] for state in BAD)
    for line in (more if len(rows) > MOST_ROWS else "", total, mend if is_bad else ""):
        if line:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
