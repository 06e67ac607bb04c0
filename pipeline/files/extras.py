"""Formats that are read with the packages of an extra: which they are, and whether it is there."""

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Extra:
    """What reads a kind of file.

    Attributes:
        name: of the extra in pyproject.toml.
        modules: all are needed.
        format: what `StorageFormat` calls it.
    """

    name: str
    modules: tuple[str, ...]
    format: str

    def is_installed(self) -> bool:
        """Whether all of its modules are there."""
        return all(map(find_spec, self.modules))


# Kind, as kinds.py calls it → extra. Developed camera RAW is written as TIFF of 16-bit colour.
EXTRAS = {
    "camera RAW": Extra("raw", ("rawpy", "imagecodecs", "tifffile"), "RAW"),
    "HEIF": Extra("phones", ("pillow_heif",), "HEIF"),
    "JPEG XL": Extra("phones", ("pillow_jxl",), "JXL"),
    "OpenEXR": Extra("render", ("OpenEXR",), "OPENEXR"),
}
READ = {kind: extra for kind, extra in EXTRAS.items() if extra.is_installed()}
