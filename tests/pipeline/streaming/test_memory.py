"""The budget that files in flight share."""

import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from denoise_batch import device
from denoise_batch.device import available_host_bytes
from denoise_batch.streaming.stream import Budget


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
    while not budget.waiting:
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


MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a machine with 8 GiB free and no limits; files in it set them."""
    monkeypatch.setattr(device, "SYSTEM", tmp_path)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    meminfo = f"MemTotal: 1 kB\nMemAvailable: {8 << 20} kB\n"
    (tmp_path / "proc" / "meminfo").write_text(meminfo)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    return tmp_path


def limit(folder: Path, names: tuple[str, str], allowed: str, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{allowed}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_a_limit_the_machine_counts(machine: Path) -> None:
    limit(machine / "sys/fs/cgroup", V2, "max", 100 * MIB)
    assert available_host_bytes() == 8 << 30


def test_the_memory_limit_of_a_container_counts(machine: Path) -> None:
    """Inside a container, its own group is mounted at the root."""
    limit(machine / "sys/fs/cgroup", V2, str(512 * MIB), 112 * MIB)
    assert available_host_bytes() == 400 * MIB


def test_page_cache_inside_a_container_is_free(machine: Path) -> None:
    limit(machine / "sys/fs/cgroup", V2, str(512 * MIB), 500 * MIB, cached=300 * MIB)
    assert available_host_bytes() == 312 * MIB


def test_the_tightest_group_above_a_service_counts(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("0::/system.slice/denoise.service\n")
    limit(machine / "sys/fs/cgroup" / "system.slice", V2, str(300 * MIB), 100 * MIB)
    limit(
        machine / "sys/fs/cgroup" / "system.slice" / "denoise.service", V2, str(900 * MIB), 50 * MIB
    )
    assert available_host_bytes() == 200 * MIB


def test_version_1_of_control_groups_counts(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("9:cpu:/\n4:memory:/job/7\n0::/\n")
    limit(machine / "sys/fs/cgroup" / "memory" / "job" / "7", V1, str(600 * MIB), 100 * MIB)
    assert available_host_bytes() == 500 * MIB


def test_an_active_page_cache_is_free_too(machine: Path) -> None:
    """A file that is read twice (decoded, hashed) is in the active one."""
    group = machine / "sys/fs/cgroup"
    limit(group, V2, str(512 * MIB), 500 * MIB, cached=200 * MIB)
    with (group / "memory.stat").open("a") as file:
        file.write(f"active_file {100 * MIB}\n")
    assert available_host_bytes() == 312 * MIB


def test_the_limit_above_which_a_group_is_throttled_counts(machine: Path) -> None:
    """systemd's MemoryHigh."""
    limit(machine / "sys/fs/cgroup", V2, str(900 * MIB), 100 * MIB)
    (machine / "sys/fs/cgroup" / "memory.high").write_text(str(300 * MIB))
    assert available_host_bytes() == 200 * MIB


def test_version_1_tells_of_limits_out_of_sight(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("4:memory,cpu:/docker/1\n")
    group = machine / "sys/fs/cgroup" / "memory"
    limit(group, V1, str((1 << 63) - 4096), 100 * MIB)
    (group / "memory.stat").write_text(
        f"inactive_file 1\nhierarchical_memory_limit {400 * MIB}\ntotal_inactive_file {50 * MIB}\n"
    )
    assert available_host_bytes() == 350 * MIB


@pytest.mark.parametrize(("kind", "pages"), [("RLIMIT_AS", 100), ("RLIMIT_DATA", 30)])
def test_the_limits_of_the_process_count(
    kind: str, pages: int, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    (machine / "proc/self/statm").write_text("100 50 5 1 0 30 0\n")
    limits = {getattr(resource, kind): (400 * MIB, -1)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits.get(kind, (-1, -1)))
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    assert available_host_bytes() == 400 * MIB - pages * resource.getpagesize()


def test_without_any_of_these_half_of_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "SYSTEM", tmp_path / "none")
    assert device.free_host_bytes() is None
    assert available_host_bytes() > MIB


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("proc/self/cgroup", b"0::/\xff\n"),
        ("proc/self/cgroup", b"nonsense\n::\n"),
        ("proc/meminfo", b"MemAvailable:\n"),
        ("sys/fs/cgroup/memory.stat", b"inactive_file \n"),
        ("sys/fs/cgroup/memory.max", b"a lot\n"),
    ],
)
def test_odd_contents_are_no_error(machine: Path, path: str, content: bytes) -> None:
    limit(machine / "sys/fs/cgroup", V2, str(512 * MIB), 112 * MIB)
    (machine / path).write_bytes(content)
    assert available_host_bytes() >= 400 * MIB


def test_a_group_that_is_over_its_limit_leaves_nothing(machine: Path) -> None:
    limit(machine / "sys/fs/cgroup", V2, str(100 * MIB), 200 * MIB)
    assert available_host_bytes() == 0


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
    module = "from denoise_batch.process import return_large_blocks"
    kept = resident_after_frees(module)
    returned = resident_after_frees(f"{module}; return_large_blocks()")
    assert kept - returned > 100 * 1024
