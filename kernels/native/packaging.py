"""What setuptools does beyond its defaults; pyproject.toml names these commands.

The libraries are compiled when the package is built. Without a compiler the installation succeeds,
and torch's matrix products compute. This file alone imports setuptools, and nothing imports it once
the package is installed.
"""

import importlib.util
import logging
import os
import platform
import shutil
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel  # type: ignore[import-untyped]
from setuptools.command.build_py import build_py  # type: ignore[import-untyped]
from setuptools.command.sdist import sdist  # type: ignore[import-untyped]

FOLDER = Path(__file__).parent
SOURCES = ("docs", "kernels", "pipeline", "scripts", "tests", "weights")
# By its path, since importing the package would import torch.
_spec = importlib.util.spec_from_file_location("native_build", FOLDER / "build.py")
assert _spec is not None
assert _spec.loader is not None
native = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(native)


class BuildPy(build_py):  # type: ignore[misc]
    """Python files, and beside them one library for each instruction set: ctypes loads them."""

    def run(self) -> None:
        """Compile a library, or copy the one beside the sources."""
        super().run()
        folder = FOLDER
        if not self.editable_mode:
            folder = Path(self.build_lib) / "denoise_batch/kernels/native"
        for name in native.instruction_sets():
            target, built = (at / native.file_name(name) for at in (folder.absolute(), FOLDER))
            if native.is_current(built) and "CXX" not in os.environ:
                if built != target:
                    shutil.copyfile(built, target)
                continue
            try:
                native.compile_library(target, name)
            except native.CompilerError as error:
                logging.warning("native kernels for %s were not compiled: %s", name, error)


class Sdist(sdist):  # type: ignore[misc]
    """The sources with all that their tests need."""

    def make_distribution(self) -> None:
        """Add every file of the repository but hidden and compiled ones."""
        for folder in SOURCES:
            self.filelist.graft(folder)
        for pattern in ("*.md", "constraints.txt"):
            self.filelist.include(pattern)
        for pattern in ("__pycache__/*", "*.py[cod]", "*.so"):
            self.filelist.global_exclude(pattern)
        super().make_distribution()


class Wheel(bdist_wheel):  # type: ignore[misc]
    """A wheel for one platform, but for any Python."""

    def finalize_options(self) -> None:
        """Say that there are compiled files."""
        self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        """Return py3-none-<platform>; on Linux, for this glibc or a later one."""
        name, version = platform.libc_ver()
        if name != "glibc":
            return "py3", "none", super().get_tag()[2]
        return "py3", "none", f"manylinux_{version.replace('.', '_')}_{platform.machine()}"
