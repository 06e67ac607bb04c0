"""scripts/bootstrap with a Python that only takes notes: no network, no environment is made."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bootstrap"
# `-m venv --clear .venv` leaves an environment whose python is this one, with pip.
PYTHON = """#!/bin/sh
echo "$@" >> notes
case "$*" in "-m venv"*) rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac
"""
WITHOUT_PIP = """#!/bin/sh
echo "No module named pip" >&2
exit 1
"""


def bootstrap(root: Path) -> list[str]:
    """What Python was asked, in order."""
    (root / "scripts").mkdir()
    shutil.copy(SCRIPT, root / "scripts" / "bootstrap")
    executable(root / "scripts" / "link", "#!/bin/sh\n")
    python = executable(root / "python", PYTHON)
    subprocess.run(
        [root / "scripts" / "bootstrap"],
        env=os.environ | {"PYTHON": str(python), "CI": ""},
        check=True,
    )
    return (root / "notes").read_text().splitlines()


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("state", ["none", "without-pip", "without-python"])
def test_an_environment_that_is_not_whole_is_made_anew(state: str, tmp_path: Path) -> None:
    if state == "without-pip":  # Debian's python3 without python3-venv leaves one
        executable(tmp_path / ".venv" / "bin" / "python", WITHOUT_PIP)
    if state == "without-python":
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
    venv, install = bootstrap(tmp_path)
    assert venv == "-m venv --clear .venv"
    assert install.startswith("-m pip install")
    assert install.endswith("--editable .[dev]")


def test_an_environment_with_pip_is_kept(tmp_path: Path) -> None:
    executable(tmp_path / ".venv" / "bin" / "python", PYTHON)
    (tmp_path / ".venv" / "kept").touch()
    version, install = bootstrap(tmp_path)
    assert version == "-m pip --version"
    assert install.startswith("-m pip install")
    assert (tmp_path / ".venv" / "kept").exists()
