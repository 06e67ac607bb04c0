"""Compile the library: one shared object for each instruction set, from one source.

    python kernels/native/build.py        beside the sources, where `library` finds it

`packaging`, scripts and tests call `compile_library`. Only the standard library is imported, since
`packaging` runs before the package is installed.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = ("pool.cpp", "winograd.cpp", "direct.cpp", "pointwise.cpp", "optim.cpp")
# Rounding is as written but for a·b + c in one step; no -ffast-math, whose start-up code makes the
# whole process flush small numbers to zero, and no -march=native: a build runs elsewhere, too.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fPIC",
    "-pthread",
)
# A wheel runs beside older C++ libraries than the compiler's.
LINK_FLAGS = ("-static-libstdc++", "-static-libgcc") if sys.platform == "linux" else ()
# What torch's get_cpu_capability asks for before it says AVX2 or AVX512.
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "neon": (),
}
MACHINES = {
    "x86_64": ("avx512", "avx2"),
    "aarch64": ("neon",),  # from the same source; untested
    "arm64": ("neon",),
}
HINT = "install a C++ compiler (apt install g++, or xcode-select --install) and reinstall"


class CompilerError(Exception):
    """There is no compiler, or none that compiles the sources; the message says why."""


def instruction_sets() -> tuple[str, ...]:
    """The ones to compile for on this machine, the best first; none on Windows."""
    return () if sys.platform == "win32" else MACHINES.get(platform.machine(), ())


def file_name(instruction_set: str) -> str:
    """The name of a library."""
    return f"libdenoise-{instruction_set}.so"


def source_hash() -> str | None:
    """What the sources and flags are, to tell a stale library; None without the sources."""
    paths = sorted(path for path in FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    if not paths:
        return None
    digest = hashlib.sha256(repr((FLAGS, LINK_FLAGS, INSTRUCTION_SETS)).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def is_current(path: Path) -> bool:
    """Whether there is a library at `path` that these sources made."""
    mark = source_hash()
    return path.exists() and mark is not None and mark.encode() in path.read_bytes()


def compilers() -> Iterator[list[str]]:
    """Compilers to try: $CXX alone if it is set, otherwise those on the PATH."""
    if command := os.environ.get("CXX"):
        yield shlex.split(command)
        return
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            yield [name]


def compile_library(target: Path, instruction_set: str, extra: Sequence[str] = ()) -> None:
    """Compile the library for an instruction set to `target`, replacing it in one step.

    Args:
        target: a path; its folder must exist.
        instruction_set: one of `INSTRUCTION_SETS`.
        extra: more flags, such as a sanitizer's.

    Raises:
        CompilerError: no compiler can.
    """
    flags = [*FLAGS, *INSTRUCTION_SETS[instruction_set], f'-DSOURCE_HASH="{source_hash()}"', *extra]
    failures = []
    for compiler in compilers():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            try:
                _compile(compiler, flags, Path(folder) / target.name)
            except (OSError, subprocess.CalledProcessError) as error:
                reason = getattr(error, "stderr", "") or str(error)
                failures.append(f"{compiler[0]}: {reason.strip()[-400:]}")
                continue
            (Path(folder) / target.name).replace(target)
            return
    raise CompilerError("; ".join(failures) or f"no C++ compiler was found; {HINT}")


def _compile(compiler: list[str], flags: Sequence[str], target: Path) -> None:
    def run(arguments: Sequence[str]) -> None:
        subprocess.run([*compiler, *flags, *arguments], check=True, capture_output=True, text=True)

    def compile_source(name: str) -> str:
        # A relative path, so that no folder's name gets into the library.
        compiled = str(target.with_name(f"{name}.o"))
        arguments = [*compiler, *flags, "-c", name, "-o", compiled]
        subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=FOLDER)
        return compiled

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        compiled = list(threads.map(compile_source, SOURCES))
    run([*compiled, "-shared", *LINK_FLAGS, "-o", str(target)])


def main() -> int:
    """Compile for every instruction set of this machine, beside the sources, unless it was."""
    for name in instruction_sets():
        if is_current(FOLDER / file_name(name)):
            continue
        try:
            compile_library(FOLDER / file_name(name), name)
        except CompilerError as error:
            print(f"native kernels for {name} were not compiled: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
