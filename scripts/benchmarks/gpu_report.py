"""The report of scripts/gpu-check, which is whole after every line, and the processes that it runs.

A process has a time of its own, and ends with all that it started. What it says on its standard
error belongs to the report: kernels that are off, graphs that are not used. Rows of such processes
carry `DOUBTFUL`, since they are not what they are called.
"""

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOUBTFUL = "⚠"
LEGEND = f"{DOUBTFUL}: something slower computed in this row; the notes of its part say what."
_DOUBT = re.compile(r"disabled|slower: no \w+ kernels|matrix products|float32 computes again")
_PROGRESS = re.compile(r"\d+/\d+ (?P<name>\S+)")  # scripts/bench names a case before it runs it
_MOST_NOTES, _MOST_CHARACTERS = 12, 300  # of a part, and of a note


class ChildError(Exception):
    """A process failed, or took longer than its time; the message says which and why.

    Attributes:
        is_late: it took too long, and what it found until then is no less right.
    """

    def __init__(self, message: str, *, is_late: bool) -> None:
        super().__init__(message)
        self.is_late = is_late


@dataclass(frozen=True)
class Ended:
    """What a process left.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        lines: of its standard output.
        errors: of its standard error.
        seconds: that it took.
        is_late: it was ended since it took too long.
    """

    code: int
    lines: Sequence[str]
    errors: Sequence[str]
    seconds: float
    is_late: bool

    @property
    def warnings(self) -> list[str]:
        """Its errors, each once, without the progress of scripts/bench."""
        found = (line.strip() for line in self.errors)
        return list(dict.fromkeys(line for line in found if line and not _PROGRESS.match(line)))

    @property
    def is_doubtful(self) -> bool:
        """Whether something else computed than it was to be."""
        return any(map(is_doubt, self.warnings))

    def doubtful_cases(self) -> set[str]:
        """The cases of scripts/bench in which something else computed."""
        found, case = set(), ""
        for line in self.errors:
            if step := _PROGRESS.match(line):
                case = step["name"]
            elif is_doubt(line):
                found.add(case)
        return found


def is_doubt(text: str) -> bool:
    """Whether a warning, or the words for what computed, say that something slower did."""
    return bool(_DOUBT.search(text))


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    on_line: Callable[[str], None] = lambda line: None,
    environment: Mapping[str, str | None] | None = None,
    processes: "set[subprocess.Popen[str]] | None" = None,
) -> Ended:
    """Run a process, and end it with all that it started, at the latest after its time.

    Args:
        command: what to run.
        timeout_s: its time.
        on_line: called with each line of its standard output, as it comes.
        environment: what it has beside this process's; None: not even that.
        processes: holds it as long as it runs.
    """
    variables = {**os.environ, **(environment or {})}
    processes = set() if processes is None else processes
    started = time.monotonic()
    lines: list[str] = []
    late = threading.Event()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env={name: value for name, value in variables.items() if value is not None},
            process_group=0,
        )

        processes.add(process)

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(max(timeout_s, 0), end)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                on_line(lines[-1])
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
            process.communicate()
            processes.discard(process)
        errors.seek(0)
        said = errors.read().splitlines()
    return Ended(process.returncode, lines, said, time.monotonic() - started, late.is_set())


def _kill(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class Report:
    """A Markdown file that is written anew with every line, and its lines on standard output.

    Args:
        path: the file.
        head: its first lines.
        device: that is checked, such as cuda:0.
        is_quick: take small sizes.
        deadline: of all parts together, by `time.monotonic`.
        scratch: a folder for the parts' files.

    Attributes:
        wrong: names of the parts in which something was wrong.
    """

    def __init__(
        self,
        path: Path,
        head: Sequence[str],
        *,
        device: str,
        is_quick: bool,
        deadline: float,
        scratch: Path,
    ) -> None:
        self.device, self.is_quick, self.scratch = device, is_quick, scratch
        self.wrong: list[str] = []
        self._path, self._head, self._deadline = path, head, deadline
        self._body: list[str] = []
        self._states: dict[str, str] = {}
        self._part = ""
        self._notes: list[str] = []
        self._failures: list[str] = []
        self._is_late = self._is_doubtful = False
        self._processes: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU is checked; anything else is a rehearsal."""
        return self.device.startswith("cuda")

    @property
    def left_s(self) -> float:
        """Seconds that are left for all parts."""
        return self._deadline - time.monotonic()

    def begin(self, name: str, title: str) -> None:
        """Begin a part."""
        self._part, self._notes, self._failures = name, [], []
        self._is_late = self._is_doubtful = False
        self._states[name] = "began, and did not end"
        self.say("", f"## {title}", "")

    def end(self, seconds: float) -> None:
        """End the part, which took so long: what was wrong, its notes."""
        wrong, notes = self._failures[:_MOST_NOTES], self._notes[:_MOST_NOTES]
        left_out = len(self._failures) - len(wrong) + len(self._notes) - len(notes)
        more = [f"… and {left_out} more lines"] if left_out else []
        if lines := [*wrong, *notes, *more]:
            self.say("", *(f"- {line}" for line in lines))
        state = "incomplete" if self._is_late else "ok"
        state = "WRONG" if self._part in self.wrong else state
        mark = f" {DOUBTFUL}" * self._is_doubtful
        self._states[self._part] = f"{state}{mark}, {seconds:.0f} s"
        self._write()

    def end_processes(self) -> None:
        """End what still runs."""
        for process in list(self._processes):
            _kill(process)

    def skip(self, name: str, reason: str) -> None:
        """Leave a part out."""
        self._states[name] = f"left out: {reason}"
        self._write()

    def say(self, *lines: str) -> None:
        """Add lines; any thread may."""
        with self._lock:
            self._body += lines
            self._write()
            print("\n".join(lines), flush=True)

    def table(self, *head: str) -> None:
        """Begin a table."""
        self.say("", f"| {' | '.join(head)} |", f"|{'--|' * len(head)}")

    def row(self, *cells: Any) -> None:
        """Add a row to the table; a float is shown with three digits, None is empty."""
        self._is_doubtful |= str(cells[0]).endswith(DOUBTFUL)
        self.say(f"| {' | '.join(map(_cell, cells))} |")

    def note(self, *notes: str) -> None:
        """Add lines at the end of the part, each once."""
        with self._lock:
            for note in (each[:_MOST_CHARACTERS] for each in notes):
                if note not in self._notes:
                    self._notes.append(note)

    def fail(self, reason: str) -> None:
        """Say what is wrong, before the part's notes."""
        with self._lock:
            if self._part not in self.wrong:
                self.wrong.append(self._part)
            self._failures.append(f"**WRONG**: {reason}"[:_MOST_CHARACTERS])

    def child(
        self,
        label: str,
        command: Iterable[str],
        *,
        most_s: float,
        on_line: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str | None] | None = None,
        may_fail: bool = False,
        progress: re.Pattern[str] | None = None,
    ) -> Ended:
        """Run a process within its time and the report's; its warnings become notes.

        Args:
            label: what the report calls it.
            command: what to run.
            most_s: its time.
            on_line: called with each line of its standard output, as it comes.
            environment: what it has beside this process's; None: not even that.
            may_fail: return whatever becomes of it.
            progress: of its standard error, what is no warning.

        Raises:
            ChildError: it failed, or took too long.
        """
        time_s = max(min(most_s, self.left_s), 0.0)
        ended = run(
            list(command),
            timeout_s=time_s,
            on_line=on_line,
            environment=environment,
            processes=self._processes,
        )
        self._is_late |= ended.is_late
        is_failed = ended.code != 0 or ended.is_late
        if is_failed and not may_fail:
            if ended.is_late:
                self.note(*(f"{label}: {warning}" for warning in ended.warnings[-3:]))
                raise ChildError(f"{label}: ended after its {time_s:.0f} s", is_late=True)
            last = " / ".join(ended.warnings[-3:]) or " / ".join(ended.lines[-3:])
            raise ChildError(f"{label}: exit code {ended.code}: {last}", is_late=False)
        told = [line for line in ended.warnings if not (progress and progress.match(line))]
        self.note(*(f"{label}: {line}" for line in told))
        return ended

    def give_up(self, error: Exception) -> None:
        """Note what ended a part, or a row of it, early."""
        if isinstance(error, ChildError):
            self.note(str(error)) if error.is_late else self.fail(str(error))
        else:
            self.fail(f"{type(error).__name__}: {error}")

    def _write(self) -> None:
        states = [f"- {name}: {state}" for name, state in self._states.items()]
        lines = [*self._head, "", *states, *self._body]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever ends this process in the midst of it leaves the file that there was.
        beside = self._path.with_name(self._path.name + ".tmp")
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        beside.replace(self._path)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return str(value)
