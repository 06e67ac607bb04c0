"""The options of one denoise-batch run, checked once, here."""

import hashlib
import json
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from denoise_batch.kernels import ImageError, OptionError

from .files.images import output_format
from .files.scan import OutputNaming

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
REPORTS = (".json", ".csv", ".html")

FORMATS = {
    "preserve": None,
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
    "ppm": ".ppm",
    "avif": ".avif",
    "jp2": ".jp2",
    "heic": ".heic",
    "jxl": ".jxl",
}


@dataclass(frozen=True)
class DenoiseOptions:
    """One run of denoise-batch.

    Attributes:
        inputs: folders, files and glob patterns.
        output: output folder; None puts the outputs beside the input.
        weights: a file, a shipped name, or None for the default.
        device: auto, cpu, cuda, cuda:N, mps or xpu.
        reference: folder of clean images with the same names.
        batch_size: images per batch; None chooses by their size.
        recursive: search sub-folders too.
        overwrite: denoise everything again, and replace files of other origin.
        times: outputs get the times of their inputs.
        provenance: outputs say in EXIF which version and weights made them.
        quality: of lossy formats, 1 to 100.
        png_level: zlib's level of PNG, 0 to 9.
        workers: threads that read, and threads that write; None: by the cores.
        format: a key of `FORMATS`.
        suffix: appended to the outputs' names, before the dot.
        strength: blend; 0 keeps the input, 1 is the network's output.
        noise_level: that the network is told: "auto" (estimated, with a reserve), σ in units of
            1/255 of the file's range ("10"), or a factor of what auto tells it ("1.3x").
        tta: average over the eight rotated and flipped versions of every image.
        precision: of the convolutions: auto, fp32; on a GPU bf16 or fp16.
        tile: auto (tile only if memory demands it), off, or the side of a tile in pixels.
        shard: (number, shards): process this shard, numbered from 1.
        limit: stop after this many images have been denoised; None: no limit.
        cuda_graphs: on CUDA, record the launches of recurring shapes and replay them.
        measure: estimate every image's noise and, without references, its PSNR.
        value_range: (black, white) of samples above 8 bits; None: as each file says or shows.
        reports: report files, with the suffix .json, .csv or .html.
        engine: "local" (this machine) or "ray" (a cluster).
        ray_address: address of the cluster; None: RAY_ADDRESS, or a local cluster.
        files_from: list of the files to read, below the one input if there is one; "-": standard
            input.
        null: the list's names end with NUL, not with lines.
    """

    inputs: tuple[str, ...]
    output: Path | None = None
    weights: str | None = None
    device: str = "auto"
    reference: Path | None = None
    batch_size: int | None = None
    recursive: bool = True
    overwrite: bool = False
    times: bool = True
    provenance: bool = True
    quality: int = 95
    png_level: int = 2
    workers: int | None = None
    format: str = "preserve"
    suffix: str = ""
    strength: float = 1.0
    noise_level: str = "auto"
    tta: bool = False
    precision: str = "auto"
    tile: str = "auto"
    shard: tuple[int, int] = (1, 1)
    limit: int | None = None
    cuda_graphs: bool = False
    measure: bool = True
    value_range: tuple[float, float] | None = None
    reports: tuple[Path, ...] = ()
    engine: str = "local"
    ray_address: str | None = None
    files_from: str | None = None
    null: bool = False

    def __post_init__(self) -> None:
        if "" in self.inputs:  # which `Path` takes for the current folder
            raise OptionError("an input is empty; name a folder, a file or a pattern")
        if self.files_from is None and not self.inputs:
            raise OptionError(
                "Missing argument INPUT: folders, files, patterns or URLs, or --files-from a list"
            )
        if self.files_from == "":
            raise OptionError("--files-from is empty; name a list, or - for standard input")
        if self.files_from is not None and len(self.inputs) > 1:
            raise OptionError(
                f"--files-from {self.files_from}: its names are below one folder; give one INPUT "
                "or none"
            )
        if self.null and self.files_from is None:
            raise OptionError("--null: goes with --files-from")
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"--batch-size {self.batch_size}: must be at least 1, or auto")
        if not 1 <= self.quality <= 100:
            raise OptionError(f"--quality {self.quality}: between 1 and 100")
        if not 0 <= self.png_level <= 9:
            raise OptionError(f"--png-level {self.png_level}: from 0 to 9")
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"--workers {self.workers}: must be at least 1")
        if self.reference is not None and not self.reference.is_dir():
            raise OptionError(f"--reference {self.reference}: not a folder")
        if self.format not in FORMATS:
            raise OptionError(f"--format {self.format!r}: choose {', '.join(FORMATS)}")
        if suffix := FORMATS[self.format]:
            _check_extra(self.format, suffix)
        if any(character in self.suffix for character in "/\\\0"):
            raise OptionError(f"--suffix {self.suffix!r}: part of a file's name, without slashes")
        if not 0 <= self.strength <= 1:
            raise OptionError(f"--strength {self.strength}: between 0 and 1")
        parse_noise_level(self.noise_level)
        if self.precision not in PRECISIONS:
            raise OptionError(f"--precision {self.precision!r}: choose {', '.join(PRECISIONS)}")
        if self.tile not in ("auto", "off") and not (self.tile.isdecimal() and int(self.tile) > 0):
            raise OptionError(f"--tile {self.tile!r}: auto, off, or a tile's side in pixels")
        if self.value_range is not None:
            check_range(*self.value_range)
        number, shards = self.shard
        if not 1 <= number <= shards:
            raise OptionError(f"--shard {number}/{shards}: I/N with I from 1 to N")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit {self.limit}: must be at least 1")
        for path in self.reports:
            _check_report(path)
        if self.engine not in ("local", "ray"):
            raise OptionError(f"--engine {self.engine!r}: choose local or ray")
        if self.ray_address is not None and self.engine != "ray":
            raise OptionError(f"--ray-address {self.ray_address}: goes with --engine ray")

    @property
    def tile_px(self) -> int | None:
        """Side of a tile in pixels; 0: no tiles, None: automatic."""
        return {"auto": None, "off": 0}[self.tile] if not self.tile.isdecimal() else int(self.tile)

    @property
    def level(self) -> float | None:
        """The noise level that the network is told, for values in [0, 1]; None: the estimate."""
        return parse_noise_level(self.noise_level)[0]

    @property
    def level_factor(self) -> float:
        """Factor of the level that auto tells."""
        return parse_noise_level(self.noise_level)[1]

    @property
    def naming(self) -> OutputNaming:
        """How outputs are named."""
        return OutputNaming(self.suffix, FORMATS[self.format])

    def digest(self, precision: str) -> str:
        """Digest of all options that change pixels.

        Args:
            precision: the resolved precision, not "auto".
        """
        quality: list[object] = [self.quality, self.strength, self.tta, precision, self.value_range]
        if self.noise_level != "auto":
            quality.append(parse_noise_level(self.noise_level))
        return hashlib.sha256(json.dumps([2, *quality]).encode()).hexdigest()[:16]


def _check_extra(name: str, suffix: str) -> None:
    try:
        output_format(Path(f"x{suffix}"))
    except ImageError as error:
        raise OptionError(f"--format {name}: {error}") from error


def parse_range(text: str) -> tuple[float, float]:
    """Parse `--range`.

    Raises:
        OptionError: not LOW-HIGH.
    """
    number = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    found = re.fullmatch(rf"\s*{number}\s*-\s*{number}\s*", text)
    if found is None:
        raise OptionError(f"--range {text!r}: LOW-HIGH, such as 0-4095 or -0.5-1.5")
    return float(found[1]), float(found[2])


def check_range(low: float, high: float) -> None:
    """Check that black lies below white.

    Raises:
        OptionError: it does not.
    """
    if not (math.isfinite(high - low) and low < high):
        raise OptionError(f"--range {low:g}-{high:g}: LOW-HIGH with LOW below HIGH")


def _check_report(path: Path) -> None:
    if path.suffix.lower() not in REPORTS:
        raise OptionError(f"--report {path}: end it in {', '.join(REPORTS)}")
    if path.is_dir():
        raise OptionError(f"--report {path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OptionError(f"--report {path}: there is no folder {path.parent}; make it first")
    check_writable(f"--report {path}", path)


def check_writable(option: str, path: Path) -> None:
    """Check that a file can be made, without making it.

    Raises:
        OptionError: its folder cannot be written to; the message begins with the option.
    """
    folder = path.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()  # nobody sees it: it has no name
    except OSError as error:
        raise OptionError(
            f"{option}: {folder} cannot be written to: {error.strerror}; take another"
        ) from error


def parse_noise_level(text: str) -> tuple[float | None, float]:
    """Parse `--noise-level`: the level for values in [0, 1], None if estimated, and its factor.

    Raises:
        OptionError: neither auto, nor a level of 0 to 255, nor a factor of 0.1x to 10x.
    """
    if text == "auto":
        return None, 1.0
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(x?)", text)
    if match and match[2] and 0.1 <= float(match[1]) <= 10:
        return None, float(match[1])
    if match and not match[2] and float(match[1]) <= 255:
        return float(match[1]) / 255, 1.0
    raise OptionError(
        f"--noise-level {text!r}: auto, σ from 0 to 255 in units of 1/255 of the file's range "
        "(10), or a factor of auto from 0.1x to 10x (1.3x)"
    )
