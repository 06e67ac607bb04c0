"""scripts/bootstrap and the scripts that call it, with a fake Python that installs nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
# `-m venv --clear .venv` makes an environment whose python is this one, with pip.
PYTHON = """#!/bin/sh
echo "$@" >> notes
case "$*" in
    "-m venv"*) rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip install"*) echo "Collecting torch>=2.4"
        echo "  Downloading torch-2.13.0-cp311.whl (183.0 MB)"
        [ ! -e broken ] || { echo "ERROR: No matching distribution found for torch"; exit 1; } ;;
esac
"""
WITHOUT_PIP = """#!/bin/sh
echo "No module named pip" >&2
exit 1
"""
BUILD = "kernels/native/build.py"
VERBS = ["bench", "build", "check", "corpus", "denoise", "gpu-check"]
VERBS += ["lint", "reproduce", "scaling"]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project folder that holds only scripts/bootstrap."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "bootstrap", tmp_path / "scripts" / "bootstrap")
    executable(tmp_path / "scripts" / "link", "#!/bin/sh\n")
    return tmp_path


def bootstrap(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    python = executable(root / "python", PYTHON)
    return subprocess.run(
        [root / "scripts" / "bootstrap", *arguments],
        env=os.environ | {"PYTHON": str(python), "CI": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def notes(root: Path) -> list[str]:
    """What Python was asked, in order."""
    return (root / "notes").read_text().splitlines()


def installs(root: Path) -> list[str]:
    """The same without the compilation of changed kernels, which every start looks at."""
    return [note for note in notes(root) if note != BUILD]


@pytest.mark.parametrize("state", ["none", "without-pip", "without-python"])
def test_an_incomplete_environment_is_made_anew(state: str, root: Path) -> None:
    if state == "without-pip":  # Debian's python3 without python3-venv leaves one
        executable(root / ".venv" / "bin" / "python", WITHOUT_PIP)
    if state == "without-python":
        (root / ".venv" / "bin").mkdir(parents=True)
    assert bootstrap(root).returncode == 0
    venv, pip, install = notes(root)
    assert "pip>=25.1" in pip  # which knows groups
    assert venv == "-m venv --clear .venv"
    assert install.startswith("-m pip install")
    assert "--constraint constraints.txt" in install
    assert install.endswith("--group dev --editable .")


def test_an_environment_with_pip_is_kept(root: Path) -> None:
    executable(root / ".venv" / "bin" / "python", PYTHON)
    (root / ".venv" / "kept").touch()
    assert bootstrap(root).returncode == 0
    version, _, install = notes(root)
    assert version == "-m pip --version"
    assert install.startswith("-m pip install")
    assert (root / ".venv" / "kept").exists()


def test_progress_goes_to_stderr_and_a_complete_environment_is_silent(root: Path) -> None:
    first = bootstrap(root, "--if-needed")
    assert first.stdout == ""
    assert "Setting up .venv (once" in first.stderr
    assert "1 torch>=2.4" in first.stderr
    assert "183.0 MB" in first.stderr
    before = notes(root)
    again = bootstrap(root, "--if-needed")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert notes(root) == [*before, BUILD]


def test_development_tools_are_added_to_a_users_environment(root: Path) -> None:
    bootstrap(root, "--if-needed", "user")
    assert installs(root)[-1].endswith("constraints.txt --editable .")
    bootstrap(root, "--if-needed", "user")
    assert len(installs(root)) == 2
    bootstrap(root, "--if-needed")
    assert installs(root)[-1].endswith("--group dev --editable .")
    count = len(installs(root))
    bootstrap(root, "--if-needed", "user")  # the larger environment serves
    assert len(installs(root)) == count


def test_a_failed_installation_is_an_error_and_tried_again(root: Path) -> None:
    (root / "broken").touch()
    failed = bootstrap(root, "--if-needed")
    assert failed.returncode == 1
    assert "ERROR: No matching distribution found for torch" in failed.stderr
    assert ".venv/install.log" in failed.stderr
    (root / "broken").unlink()
    assert bootstrap(root, "--if-needed").returncode == 0


@pytest.mark.parametrize("verb", [*VERBS, "test"])
def test_every_script_makes_its_environment_first(verb: str, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / verb, tmp_path / "scripts" / verb)
    executable(tmp_path / "scripts" / "bootstrap", '#!/bin/sh\necho "bootstrap $*" && exit 7\n')
    done = subprocess.run(
        [tmp_path / "scripts" / verb],
        env=os.environ | {"PYTHON": "false"},  # no Python that has all that gpu-check takes
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    user = " user" if verb in ("denoise", "gpu-check") else ""
    assert done.stdout == f"bootstrap --if-needed{user}\n"


def test_no_script_is_untested() -> None:
    found = {path.name for path in SCRIPTS.iterdir() if path.is_file()}
    assert found == {*VERBS, "test", "bootstrap", "link"}
