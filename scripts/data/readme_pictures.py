"""Draw the documentation's pictures of a run: terminal (SVG) and, with Chromium, HTML report.

usage: python scripts/data/readme_pictures.py NOISY CLEAN OUTPUT-FOLDER

They show this machine's speed, so run nothing else meanwhile.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from denoise_batch.cli.console import print_summary
from denoise_batch.options import DenoiseOptions
from denoise_batch.reports import write_report
from denoise_batch.reports.report import make_report
from denoise_batch.streaming.session import denoise

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--window-size=1240,1060",
)  # fmt: skip


def main(noisy: str, clean: str, output: str) -> None:
    """Denoise into a temporary folder and draw what a user sees."""
    with tempfile.TemporaryDirectory() as folder:
        options = DenoiseOptions(
            (noisy,), output=Path(folder) / "denoised", reference=Path(clean), device="cpu"
        )
        denoise(options)  # warm up: imports and memory
        again = DenoiseOptions(
            (noisy,), output=Path(folder) / "again", reference=Path(clean), device="cpu"
        )
        summary = denoise(again)
        console = Console(record=True, width=88, file=sys.stderr, force_terminal=True)
        console.print(f"[bold]$[/] denoise-batch {noisy} --reference {clean}", highlight=False)
        print_summary(summary, console)
        svg = console.export_svg(title="denoise-batch")
        # Remove the fonts that rich would load from the network.
        svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
        (Path(output) / "terminal.svg").write_text(svg, encoding="utf-8")
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            print("no Chromium: report.png is unchanged", file=sys.stderr)
            return
        page = Path(folder) / "report.html"
        write_report(page, make_report(again, summary))
        shot = (Path(output) / "report.png").resolve()
        profile = f"--user-data-dir={folder}/profile"
        command = [browser, *FLAGS, profile, f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
