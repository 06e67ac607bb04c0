"""`denoise-batch`: arguments → DenoiseOptions → denoise → table and exit code."""

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import PlainCommand, Version, exit_codes, new_app, require_output, run_app

app = new_app()

INPUT, OUTPUT, NETWORK, PERFORMANCE, SCHEDULING, REPORTS = (
    "Input", "Output", "Network", "Performance", "Scheduling", "Reports"
)  # fmt: skip

EXAMPLES = """[bold]Examples[/]

[cyan]denoise-batch imgs[/]  writes imgs-denoised, the same tree

[cyan]denoise-batch scans/*.tif -o clean --noise-level 1.3x[/]  remove more noise than estimated

[cyan]denoise-batch imgs --reference clean --report report.html[/]  PSNR against clean images

[cyan]denoise-batch /data/in -o /data/out --watch 10 --log json[/]  a drop folder
"""


class BatchCommand(PlainCommand):
    """A command whose usage errors are JSON lines too, if the log is."""

    def on_usage_error(self, args: list[str], error: Any) -> None:
        """Write what ends the run before it began."""
        logs = [
            word.partition("=")[2] or after
            for word, after in pairwise([*args, ""])
            if word == "--log" or word.startswith("--log=")
        ]
        if logs[-1:] == ["json"]:
            from .console import JsonLines

            JsonLines(sys.stdout).show_error(error.format_message(), error.exit_code)


@app.command(cls=BatchCommand, epilog=EXAMPLES)
def denoise(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            show_default=False,
            help="Folders, files, glob patterns or URLs (s3://…); with --files-from one folder, or "
            "none.",
        ),
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Read only the files and folders that FILE names, one a line (-: standard input), "
            "below INPUT or the current folder. Outputs keep these paths below --output, absolute "
            "ones without the leading /. Without INPUT and --output each is written beside its "
            "file.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    null: Annotated[
        bool,
        typer.Option(
            "--null",
            "-0",
            help="The names of --files-from end with NUL (find -print0), not with line ends.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Output folder; mirrors the input's tree. Default: INPUT-denoised.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="File format: preserve, png, jpeg, webp, tiff, bmp, ppm, avif, jp2, heic or jxl.",
            rich_help_panel=OUTPUT,
        ),
    ] = "preserve",
    quality: Annotated[
        int,
        typer.Option(
            "--quality", "-q", help="Quality of JPEG, WebP and AVIF, 1-100.", rich_help_panel=OUTPUT
        ),
    ] = 95,
    suffix: Annotated[
        str,
        typer.Option(
            help="Append to each output's name: with _clean, a.png becomes a_clean.png.",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
    recursive: Annotated[
        bool, typer.Option(help="Search sub-folders too.", rich_help_panel=OUTPUT)
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Denoise everything again, and replace files that this tool did not write.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    png_level: Annotated[
        int,
        typer.Option(
            help="Compression of PNG, 0 (none) to 9 (small, slow); the pixels are the same.",
            rich_help_panel=OUTPUT,
        ),
    ] = 2,
    times: Annotated[
        bool,
        typer.Option(help="Give each output its input's file times.", rich_help_panel=OUTPUT),
    ] = True,
    provenance: Annotated[
        bool,
        typer.Option(
            help="Say in EXIF Software which version and weights made it.", rich_help_panel=OUTPUT
        ),
    ] = True,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            "-w",
            help="A safetensors file, or unet-level-10 (default; any picture), unet-gaussian-4 "
            "(white noise), tconv or upsample (the course paper's).",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    strength: Annotated[
        float,
        typer.Option(
            "--strength",
            "-s",
            help="Blend: 0 keeps the input, 1 is the network's output.",
            rich_help_panel=NETWORK,
        ),
    ] = 1.0,
    noise_level: Annotated[
        str,
        typer.Option(
            metavar="auto|SIGMA|1.3x",
            help="Noise that the network is told to remove: auto (estimated, with a reserve), σ in "
            "1/255 of the file's range (10), or a factor of what auto tells it (1.3x).",
            rich_help_panel=NETWORK,
        ),
    ] = "auto",
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Average 8 rotated and flipped passes: better, 8 times slower.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW-HIGH",
            help="Black and white of samples above 8 bits, for all files. Default: that of the "
            "weights' training, what each file declares, or where nearly all of its samples lie.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            "-d",
            help="auto (the first available of CUDA, XPU, MPS, CPU), cpu, cuda, cuda:N, cuda:all, "
            "mps or xpu.",
            rich_help_panel=PERFORMANCE,
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            "-p",
            help="auto (bf16 on GPUs, on V100 and T4 fp16; else fp32), fp32, bf16, fp16.",
            rich_help_panel=PERFORMANCE,
        ),
    ] = "auto",
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size", "-b", help="Images per batch, or auto.", rich_help_panel=PERFORMANCE
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Threads that read files, and threads that write them; default: by the cores.",
            rich_help_panel=PERFORMANCE,
        ),
    ] = None,
    tile: Annotated[
        str,
        typer.Option(
            "--tile",
            "-t",
            help="Tile size in pixels, auto (tile only if needed) or off. Tiles leave no seams.",
            rich_help_panel=PERFORMANCE,
        ),
    ] = "auto",
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="On CUDA, record the launches of recurring image sizes and replay them.",
            rich_help_panel=PERFORMANCE,
        ),
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            help="local, or ray to spread the images over a Ray cluster.",
            rich_help_panel=PERFORMANCE,
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster. Default: RAY_ADDRESS, or a local cluster.",
            rich_help_panel=PERFORMANCE,
        ),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Process shard I of N (deterministic).", rich_help_panel=SCHEDULING
        ),
    ] = "1/1",
    limit: Annotated[
        int | None,
        typer.Option(help="Stop after N images have been denoised.", rich_help_panel=SCHEDULING),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Poll for new images every SECONDS until interrupted.",
            rich_help_panel=SCHEDULING,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be done, how much it is and how long it may take, and exit.",
            rich_help_panel=SCHEDULING,
        ),
    ] = False,
    preview: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Only write denoise-preview.html and .png here: crops of N images at three noise "
            "levels or strengths, to choose by eye.",
            rich_help_panel=SCHEDULING,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all outputs back, compare them with what was written, and exit: 1 if one "
            "is missing, truncated, changed or unreadable.",
            rich_help_panel=SCHEDULING,
        ),
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Folder of clean images with the same names: adds PSNR to the table.",
            rich_help_panel=REPORTS,
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            help="Estimate the noise and, without --reference, the PSNR. Costs up to a second pass "
            "of the network on small images, a few tiles on large ones.",
            rich_help_panel=REPORTS,
        ),
    ] = True,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write a report: a .json, .csv or .html file. Repeatable.",
            rich_help_panel=REPORTS,
        ),
    ] = None,
    log: Annotated[
        str,
        typer.Option(
            help="auto (bars on a terminal, else plain), plain, or json (JSON lines).",
            rich_help_panel=REPORTS,
        ),
    ] = "auto",
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print failures only.", rich_help_panel=REPORTS)
    ] = False,
    show_version: Version = False,
) -> None:
    """Denoise folders of images.

    The input is never written to. Outputs keep the format, bit depth, alpha and metadata of their
    inputs, and are complete or absent. One bad image never stops a folder. Running the command
    again processes only new, changed or unfinished images.

    Exit codes: 0 done, 1 some files failed, 2 usage, 3 no images found, 4 device, 5 weights,
    6 every file failed, 7 the output or a store failed ten times in a row, 130 Ctrl-C, 143 SIGTERM
    (files in flight are finished).
    """
    with exit_codes(quiet=quiet), ExitStack() as stack:
        from denoise_batch.kernels.errors import DenoiseBatchError, OptionError

        from ..options import DenoiseOptions, parse_range
        from ..preview import write_preview
        from ..progress import Stop, stopping
        from ..streaming.session import Session, has_urls, open_storage
        from ..streaming.stream import with_stored_range
        from ..streaming.watch import watch as watch_folders
        from .console import display, write_reports

        stop, inputs = Stop(), inputs or []
        if log not in ("auto", "plain", "json"):
            raise OptionError(f"--log {log!r}: choose auto, plain, json")
        shown = stack.enter_context(display(log, quiet=quiet))  # before what may be wrong
        if batch_size != "auto" and not batch_size.isdecimal():
            raise OptionError(f"--batch-size {batch_size!r}: auto or a whole number")
        for name, path in (("--output", output), ("--reference", reference)):
            if path == "":  # which `Path` takes for the current folder
                raise OptionError(f"{name} is empty; name a folder, or leave it out")
        if watch is not None and (not 0 < watch < math.inf or dry_run):
            raise OptionError(f"--watch {watch}: a number of seconds above 0, without --dry-run")
        if watch is not None and report:
            raise OptionError("--report: a watch never ends; use the lines of --log json")
        if watch is not None and files_from is not None:
            raise OptionError("--watch: looks at folders; give them as INPUT, without --files-from")
        if dry_run and report:
            raise OptionError("--report: a dry run has nothing to report; leave one of them out")
        if preview is not None and (dry_run or watch is not None or report):
            raise OptionError(
                "--preview: writes nothing but its sheet; leave out --dry-run, --watch and --report"
            )
        if verify and (watch is not None or dry_run or report or preview is not None):
            raise OptionError("--verify: goes without --watch, --dry-run, --preview and --report")
        pages = [file for file in report or () if file.suffix.lower() == ".html"]
        if pages and has_urls(inputs, output):
            raise OptionError(
                f"--report {pages[0]}: shows pictures, which object storage does not keep on this "
                "machine; use .json or .csv"
            )
        with (
            stopping(stop),
            open_storage(inputs, output) as (local_inputs, local_output, storage),
        ):
            options = DenoiseOptions(
                inputs=local_inputs,
                output=local_output,
                weights=weights,
                device=device,
                reference=None if reference is None else Path(reference),
                batch_size=None if batch_size == "auto" else int(batch_size),
                recursive=recursive,
                overwrite=overwrite,
                times=times,
                provenance=provenance,
                quality=quality,
                png_level=png_level,
                workers=workers,
                format=format,
                suffix=suffix,
                strength=strength,
                noise_level=noise_level,
                tta=tta,
                precision=precision,
                tile=tile,
                shard=_shard(shard),
                limit=limit,
                cuda_graphs=cuda_graphs,
                measure=measure,
                value_range=None if value_range is None else parse_range(value_range),
                reports=tuple(report or ()),
                engine=engine,
                ray_address=ray_address,
                files_from=files_from,
                null=null,
            )
            if not verify:  # which needs no weights
                options = with_stored_range(options)
            if preview is not None:
                files, code = write_preview(options, preview, storage, shown.warn, stop)
                if stop.signal is None:
                    shown.show_preview(files)
                raise typer.Exit(code if stop.signal is None else 128 + stop.signal)
            # The report names URLs, not their local mirror. Before the run, because it checks.
            named: Any = {"inputs": tuple(inputs), "output": output}
            asked = replace(options, **named)

            if verify:
                from .verify import show_verification

                raise typer.Exit(show_verification(options, storage, stop, shown))

            def try_again(error: DenoiseBatchError) -> None:
                shown.warn(f"{error}; trying again")

            with Session(options, storage) as session:
                shown.show_engine(session.engine)
                if watch is not None:
                    watch_folders(session, watch, shown, stop, shown.show_summary, try_again)
                    raise typer.Exit(128 + (stop.signal or 0))
                jobs = session.jobs()
                if dry_run:
                    plan = session.plan(jobs, stop)
                    if stop.signal is None:
                        shown.show_plan(plan)
                        require_output()
                        return
                    raise typer.Exit(128 + stop.signal)
                summary = session.run(jobs, shown, stop)
        is_end_last = log == "json"  # and has the exit code, which a report may change
        if not is_end_last:
            shown.show_summary(summary)
        if report:
            write_reports(asked, summary, quiet=quiet or log == "json")
        if summary.gave_up and stop.signal is None:
            shown.warn(summary.gave_up)
        if is_end_last:
            shown.show_summary(summary)
        raise typer.Exit(summary.exit_code)


def _shard(text: str) -> tuple[int, int]:
    from denoise_batch.kernels import OptionError

    number, slash, shards = text.partition("/")
    if not (slash and number.isdecimal() and shards.isdecimal()):
        raise OptionError(f"--shard {text!r}: I/N, such as 1/4")
    return int(number), int(shards)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `denoise-batch`; returns the exit code."""
    return run_app(app, arguments)
