"""`denoise-batch`: arguments → DenoiseOptions → denoise → table and exit code."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .exits import exit_codes, run_app

if TYPE_CHECKING:
    from ..streaming.storage import Storage

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denoise-batch {version('denoise-batch')}")
        raise typer.Exit


@app.command()
def denoise(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Folders (searched deeply), files, globs, or URLs (s3://…)."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Where the outputs go, mirroring the input's tree. Default: INPUT-denoised.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            "-w",
            help="A safetensors file, or unet-gaussian-4 (the default: white noise), unet-camera-2 "
            "(phones, cameras), tconv or upsample (the report's).",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N, cuda:all or mps.")
    ] = "auto",
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Folder of clean images under the same names: adds PSNR to the table.",
        ),
    ] = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="Images a batch: auto or a number.")
    ] = "auto",
    tile: Annotated[
        str,
        typer.Option(
            "--tile",
            "-t",
            help="auto: cut up what memory demands; off; or the side in pixels. Makes no seams.",
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            "-p",
            help="auto (bf16 on GPUs that have it, else fp32), fp32, bf16, fp16.",
        ),
    ] = "auto",
    cuda_graphs: Annotated[
        bool,
        typer.Option("--cuda-graphs", help="On CUDA: replay launches for sizes that come again."),
    ] = False,
    strength: Annotated[
        float,
        typer.Option("--strength", "-s", help="0 keeps the input, 1 is the full effect."),
    ] = 1.0,
    tta: Annotated[
        bool,
        typer.Option("--tta", help="Average 8 turned and mirrored passes: better, 8 times slower."),
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="preserve, png, jpeg, webp, tiff, bmp, ppm, avif or jp2."
        ),
    ] = "preserve",
    quality: Annotated[
        int, typer.Option("--quality", "-q", help="Of JPEG, WebP and AVIF, 1-100.")
    ] = 95,
    suffix: Annotated[
        str, typer.Option(help="Added to the outputs' names, such as _clean: a.png → a_clean.png.")
    ] = "",
    recursive: Annotated[bool, typer.Option(help="Search folders to the bottom.")] = True,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Denoise all again, and replace outputs that this tool did not write.",
        ),
    ] = False,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="Do only the I-th of N shares, the same ones every time."),
    ] = "1/1",
    limit: Annotated[
        int | None,
        typer.Option(help="Denoise so many images, not counting failures; the rest is left."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Look for new images again and again, until SIGTERM or Ctrl-C.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: spread the images over a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(help="Of the cluster, as ray.init takes it. Default: RAY_ADDRESS, or here."),
    ] = None,
    log: Annotated[
        str,
        typer.Option(help="auto (bars on a terminal, else plain), plain, or json (JSON lines)."),
    ] = "auto",
    report: Annotated[
        list[Path] | None,
        typer.Option(help="Write a report: a .json, .csv or .html file. Repeat for several."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            help="Estimate noise and, without --reference, PSNR: up to a second pass of the "
            "network over small images, a few tiles of large ones."
        ),
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing but failures.")] = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Denoise folders of images.

    The input is never written to. Outputs keep the format, bit depth, alpha and metadata of their
    inputs and appear whole or not at all. One bad image never stops a folder. A second run does
    what is new, changed or left, and nothing else.

    Exit codes: 0 done, 1 some files failed, 2 usage, 3 no images found, 4 device, 5 weights,
    6 every file failed, 130 Ctrl-C, 143 SIGTERM (files in flight are finished).
    """
    with exit_codes():
        from denoise_batch.kernels import OptionError

        from ..options import DenoiseOptions
        from ..progress import Stop, stopping
        from ..streaming.session import Session
        from ..streaming.watch import watch as watch_folders
        from .console import screen, write_reports

        if batch_size != "auto" and not batch_size.isdecimal():
            raise OptionError(f"--batch-size {batch_size!r}: auto or a whole number")
        if log not in ("auto", "plain", "json"):
            raise OptionError(f"--log {log!r}: choose auto, plain, json")
        for name, path in (("--output", output), ("--reference", reference)):
            if path == "":  # which `Path` takes for the current folder
                raise OptionError(f"{name} is empty; name a folder, or leave it out")
        if watch is not None and (not 0 < watch < math.inf or dry_run):
            raise OptionError(f"--watch {watch}: a number of seconds above 0, without --dry-run")
        if watch is not None and report:
            raise OptionError("--report: a watch never ends; take the lines of --log json")
        if dry_run and report:
            raise OptionError("--report: a dry run has nothing to report; leave one of them out")
        pages = [file for file in report or () if file.suffix.lower() == ".html"]
        if pages and _are_urls(inputs, output):
            raise OptionError(
                f"--report {pages[0]}: shows pictures, which object storage does not keep on this "
                "machine; take .json or .csv"
            )
        stop = Stop()
        with (
            stopping(stop),
            screen(log, is_quiet=quiet) as shown,
            _places(inputs, output) as (places, place, storage),
        ):
            options = DenoiseOptions(
                inputs=places,
                output=place,
                weights=weights,
                device=device,
                reference=None if reference is None else Path(reference),
                batch_size=None if batch_size == "auto" else int(batch_size),
                recursive=recursive,
                overwrite=overwrite,
                quality=quality,
                format=format,
                suffix=suffix,
                strength=strength,
                is_ensemble=tta,
                precision=precision,
                tile=tile,
                shard=_shard(shard),
                limit=limit,
                has_cuda_graphs=cuda_graphs,
                is_measuring=measure,
                reports=tuple(report or ()),
                engine=engine,
                ray_address=ray_address,
            )
            # As they were named, not the folder that stands for a store. Before the run: it checks.
            named: Any = {"inputs": tuple(inputs), "output": output}
            asked = replace(options, **named)
            with Session(options, storage) as session:
                if watch is not None:
                    watch_folders(session, watch, shown.events, stop, shown.finish, _try_again)
                    raise typer.Exit(128 + (stop.signal or 0))
                jobs = session.jobs()
                if dry_run:
                    start = session.plan(jobs)
                    if stop.signal is None:
                        shown.plan(start)
                        return
                    raise typer.Exit(128 + stop.signal)
                summary = session.run(jobs, shown.events, stop)
            shown.finish(summary)
        if report:
            write_reports(asked, summary, is_quiet=quiet or log == "json")
        raise typer.Exit(summary.exit_code)


def _try_again(error: Exception) -> None:
    print(f"error: {error}; trying again", file=sys.stderr, flush=True)


def _are_urls(inputs: Sequence[str], output: str | None) -> bool:
    return any("://" in text for text in (*inputs, output or ""))


@contextmanager
def _places(
    inputs: Sequence[str], output: str | None
) -> Iterator[tuple[tuple[str, ...], Path | None, "Storage"]]:
    """Inputs and output as paths, and how files come and go; URLs load what they need."""
    from ..streaming.storage import Storage

    if not _are_urls(inputs, output):
        yield tuple(inputs), None if output is None else Path(output), Storage()
        return
    from ..scaling.remote import storage_of

    with storage_of(inputs, output) as places:
        yield places


def _shard(text: str) -> tuple[int, int]:
    from denoise_batch.kernels import OptionError

    number, slash, shards = text.partition("/")
    if not (slash and number.isdecimal() and shards.isdecimal()):
        raise OptionError(f"--shard {text!r}: I/N, such as 1/4")
    return int(number), int(shards)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `denoise-batch`; returns the exit code."""
    return run_app(app, arguments)
