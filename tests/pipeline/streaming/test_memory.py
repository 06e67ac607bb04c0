"""The budget that files in flight share."""

import platform
import subprocess
import sys
import threading
import time

import pytest

from denoise_batch.streaming.memory import Budget, available_host_bytes


def test_who_does_not_fit_waits_until_there_is_room() -> None:
    budget, entered = Budget(100), []
    assert budget.acquire(60)

    def enter() -> None:
        budget.acquire(60)
        entered.append(budget.used)

    thread = threading.Thread(target=enter)
    thread.start()
    time.sleep(0.05)
    assert entered == []
    budget.release(60)
    thread.join(10)
    assert entered == [60]


def test_a_file_larger_than_the_budget_goes_alone_and_is_not_overtaken() -> None:
    budget, order = Budget(100), []
    assert budget.acquire(10)

    def enter(name: str, size: int) -> None:
        assert budget.acquire(size)
        order.append(name)
        budget.release(size)

    large = threading.Thread(target=enter, args=("large", 500))
    large.start()
    while not budget._queue:
        time.sleep(0.001)
    small = threading.Thread(target=enter, args=("small", 10))
    small.start()
    time.sleep(0.05)
    assert order == []  # the small one would fit, but was second
    budget.release(10)
    large.join(10)
    small.join(10)
    assert order == ["large", "small"]
    assert budget.used == 0
    assert budget.most == 500


def test_closing_sends_away_who_waits() -> None:
    budget, answers = Budget(10), []
    assert budget.acquire(10)
    thread = threading.Thread(target=lambda: answers.append(budget.acquire(1)))
    thread.start()
    budget.close()
    thread.join(10)
    assert answers == [False]
    assert not budget.acquire(1)


def test_the_machine_has_memory() -> None:
    assert available_host_bytes() > 1 << 20


def resident_after_frees(setup: str) -> int:
    """Resident KiB of a process that freed 30 blocks of 4 MiB below one that it keeps."""
    code = f"""
import ctypes, threading
{setup}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = libc.free.argtypes = [ctypes.c_size_t]
def work():
    libc.free(libc.malloc(5 << 20))  # raises the limit, where it may
    blocks = [libc.malloc(4 << 20) for _ in range(30)]
    for block in blocks: ctypes.memset(block, 1, 4 << 20)
    libc.malloc(1000)
    for block in blocks: libc.free(block)
thread = threading.Thread(target=work)
thread.start(); thread.join()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_blocks_go_back_to_the_system() -> None:
    module = "from denoise_batch.streaming.memory import return_large_blocks"
    kept = resident_after_frees(module)
    returned = resident_after_frees(f"{module}; return_large_blocks()")
    assert kept - returned > 100 * 1024
