"""Files that import each other by their bare names: the names must be unique."""

import sys
from collections import Counter
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
# One test process has all these folders on sys.path; the first module of a name hides the others.
FLAT = [
    SCRIPTS.parent / "tests",
    *(SCRIPTS / name for name in ("benchmarks", "data", "reproduction")),
]
NAMES = Counter(
    path.stem for folder in FLAT for path in folder.glob("*.py") if path.stem != "__main__"
)


def test_no_two_files_share_a_name() -> None:
    assert {"oracles", "torch_networks", "corpus", "dataset"} <= set(NAMES)
    assert [name for name, count in NAMES.items() if count > 1] == []


def test_no_file_hides_a_module_of_python() -> None:
    assert set(NAMES) & sys.stdlib_module_names == set()
