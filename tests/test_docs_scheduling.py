"""docs/scheduling.md names real options only."""

import re
import shlex
from pathlib import Path

import typer.main

from denoise_batch.cli.batch import app

DOC = Path(__file__).parents[1] / "docs" / "scheduling.md"


def commands() -> list[list[str]]:
    """The arguments of every denoise-batch command on the page."""
    text = DOC.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    shell = [
        re.sub(r"^command: \[(.*)\]$", lambda m: m[1].replace(",", " "), line) for line in lines
    ]
    found = []
    for line in shell:
        words = shlex.split(line, comments=True)
        at = next((i for i, word in enumerate(words) if word.endswith("denoise-batch")), None)
        if at is not None and not line.startswith("image:"):
            found.append([re.sub(r"\$\w+_ID", "1", w) for w in words[at + 1 :]])
    return found


def test_every_command_of_the_page_is_parsed() -> None:
    command = typer.main.get_command(app)
    found = commands()
    assert len(found) == 5
    for arguments in found:
        context = command.make_context("denoise-batch", list(arguments))
        assert context.params["inputs"]
