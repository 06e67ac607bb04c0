"""Starts the children and keeps what they said: each runs once a session, two beside each other.

The interpreter and ahead-of-time compilation cannot share a process, with each other or with the
tests: Triton decides on import.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


class Child:
    """A child process that prints one JSON line for everything it was asked."""

    def __init__(self, module: str, arguments: list[str], cache: Path) -> None:
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("TRITON", "DENOISE"))
        }
        environment |= {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
        # Files, not pipes: a full pipe would stop the child until somebody asks for its rows.
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by stop)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by stop)
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"triton_children.{module}", *arguments],
            cwd=TESTS,
            env=environment,
            stdout=self._output,
            stderr=self._errors,
        )
        self._rows: dict[str, dict[str, Any]] | None = None

    def rows(self) -> dict[str, dict[str, Any]]:
        """What it said, by name; waits for its end.

        Raises:
            AssertionError: it failed.
        """
        if self._rows is None:
            code = self.process.wait()
            self._errors.seek(0)
            assert code == 0, self._errors.read()[-4000:]
            self._output.seek(0)
            lines = [json.loads(line) for line in self._output if line.startswith("{")]
            self._rows = {line["name"]: line for line in lines}
        return self._rows

    def stop(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._output.close()
        self._errors.close()
