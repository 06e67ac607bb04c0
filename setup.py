"""Compile the native kernels where there is a C++ compiler; pyproject.toml says everything else.

Without a compiler the installation succeeds, and torch's matrix products compute.
"""

import importlib.util
import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FOLDER = Path("kernels/native")
spec = importlib.util.spec_from_file_location("native_build", FOLDER / "build.py")
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


class BuildNative(build_ext):
    """One library for each instruction set; ctypes loads it, so any Python can."""

    def get_ext_filename(self, fullname):
        """Return a path without Python's version in it."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, extension):
        """Compile a library, or copy the one that is beside the sources."""
        target = Path(self.get_ext_fullpath(extension.name)).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        built = FOLDER.absolute() / target.name
        if native.is_current(built) and "CXX" not in os.environ:
            if built != target:
                shutil.copyfile(built, target)
            return
        try:
            native.compile_library(target, extension.name.rpartition("-")[2])
        except native.CompilerError as error:
            raise CompileError(str(error)) from error  # `optional` makes it a warning


class Wheel(bdist_wheel):
    """The libraries need no particular Python."""

    def get_tag(self):
        """Return py3-none-<platform>."""
        return ("py3", "none", super().get_tag()[2])


setup(
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            f"denoise_batch.kernels.native.libdenoise-{name}",
            sources=[str(FOLDER / source) for source in native.SOURCES],
            depends=[str(path) for path in sorted(FOLDER.glob("*.h"))],
            optional=True,
        )
        for name in native.instruction_sets()
    ],
)
