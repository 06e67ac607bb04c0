"""What a command's process is set to: freed memory is used again, and what the user set stays."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PAGE_FAULTS = """
import resource
from denoise_batch.process import tune_process

tune_process()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [bytearray(b"x") * (30 << 20) for _ in range(4)]
    del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(min(faults() for _ in range(3)))
"""


def page_faults(**own: str) -> int:
    others = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PAGE_FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, env=others | own, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_used_again() -> None:
    """120 MB are 30 720 pages of 4 KiB."""
    assert page_faults() < 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_the_user_has_set_of_it_stays() -> None:
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.exists() and "[always]" in huge.read_text():
        pytest.skip("huge pages hide page faults")
    assert page_faults(MALLOC_TRIM_THRESHOLD_="131072") > 20_000
