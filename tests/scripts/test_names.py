"""Files that import each other by their bare names: no two may have the same."""

import sys
from collections import Counter
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
# The tests' helpers and the scripts whose functions are tested: one process has all these folders
# on sys.path, and the first module of a name is the one that everybody gets. (scripts/gpu is only
# ever run as a process.)
FLAT = [
    SCRIPTS.parent / "tests",
    *(SCRIPTS / name for name in ("benchmarks", "data", "reproduction")),
]
NAMES = Counter(
    path.stem for folder in FLAT for path in folder.glob("*.py") if path.stem != "__main__"
)


def test_no_two_files_share_a_name() -> None:
    assert {"oracles", "twins", "corpus", "protocol"} <= set(NAMES)
    assert [name for name, count in NAMES.items() if count > 1] == []


def test_no_file_hides_a_module_of_python() -> None:
    assert set(NAMES) & sys.stdlib_module_names == set()
