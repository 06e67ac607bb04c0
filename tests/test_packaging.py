"""The house rules that no linter knows: declared rooms, one-way imports, no borrowed network."""

import ast
import graphlib
import os
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from pictures import picture

from denoise_batch.files.extras import EXTRAS

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "weights", "pipeline")  # each may import only the rooms before it
PRODUCT = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


def imports_leaving(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every absolute import, and of relative ones that climb out of the room."""
    depth = len(path.relative_to(ROOT).parts) - 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.level > depth:
            yield node.lineno, (node.module or "").split(".")[0]


def package_of(init: Path) -> str:
    """The import name of a folder: `pipeline/` is the package itself."""
    parts = init.parent.relative_to(ROOT).parts
    return ".".join(("denoise_batch", *(parts[1:] if parts[0] == "pipeline" else parts)))


def room_of(name: str) -> str:
    """The folder that holds `denoise_batch.<name>`."""
    head = name.split(".")[0]
    return head if head in ("kernels", "weights") else "pipeline"


def test_every_package_folder_is_declared() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {package_of(init) for room in ROOMS for init in (ROOT / room).rglob("__init__.py")}
    assert found == set(pyproject["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("room", [*ROOMS, "tests", "scripts"])
def test_imports_flow_one_way(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else ROOMS
    for path in (ROOT / room).rglob("*.py"):
        for line, module in imports_leaving(path):
            head, _, rest = module.partition(".")
            assert head not in ROOMS, f"{path}:{line}: write denoise_batch.{module}"
            if head == "denoise_batch" and rest:
                target = room_of(rest)
                assert target in allowed, f"{path}:{line}: {room} may not import {module}"
                assert target != room, f"{path}:{line}: inside a room imports are relative"


def modules() -> dict[str, Path]:
    """Every module of the product by its import name."""
    return {
        package_of(path) if path.name == "__init__.py" else f"{package_of(path)}.{path.stem}": path
        for path in PRODUCT
    }


def imported_by(name: str, path: Path, known: Collection[str]) -> set[str]:
    """The product's modules that `name` imports anywhere: on top, in a function, for types.

    A package's `__init__` is not counted where only a module inside the package is imported.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(above if node.level else [])
            base = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return found & set(known) - {name}


def test_there_is_no_import_circle() -> None:
    """Lazy imports count: what needs one to get around a circle has no clear place."""
    known = modules()
    graph = {name: imported_by(name, path, known) for name, path in known.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_product_borrows_no_network_from_torch(path: Path) -> None:
    """torch.nn, torch.autograd and torch.optim are the oracle in tests, never the product.

    fold and unfold in reference.py are the one exception: they move pixels and learn nothing.
    """
    tree = ast.parse(path.read_text())
    allowed = {"torch.nn.functional.fold", "torch.nn.functional.unfold"}
    for line, module in imports_leaving(path):
        borrowed = module.startswith(("torch.nn", "torch.autograd", "torch.optim"))
        excepted = path == ROOT / "kernels/reference.py" and (
            module == "torch.nn.functional" or module in allowed
        )
        assert not borrowed or excepted, f"{path}:{line}: {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("nn", "autograd", "optim"):
            owner = node.value
            is_torch = isinstance(owner, ast.Name) and owner.id == "torch"
            assert not is_torch, f"{path}:{node.lineno}: torch.{node.attr}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("conv2d", "conv_transpose2d", "requires_grad_"), (
                f"{path}:{node.lineno}: {node.attr}"
            )


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from denoise_batch.cli import batch, train;"
        "codes = [batch.main(['--help']), batch.main(['--version']), train.main(['--help'])];"
        "assert codes == [0, 0, 0], codes; assert 'torch' not in sys.modules"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_commands_tell_openmp_to_sleep_before_torch_is_imported(own: str | None) -> None:
    code = """
import os, sys
from denoise_batch.cli.command import exit_codes
with exit_codes():
    assert "torch" not in sys.modules
    print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {} if own is None else {"OMP_WAIT_POLICY": own}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [own or "PASSIVE"]


def test_one_machine_pays_nothing_for_many(tmp_path: Path) -> None:
    """Neither --help nor a run on paths imports Ray, fsspec, or what speaks to them."""
    (tmp_path / "imgs").mkdir()
    picture(16, 16).save(tmp_path / "imgs" / "a.png")
    arguments = [str(tmp_path / "imgs"), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    code = (
        "import sys; from denoise_batch.cli import batch, train;"
        "extras = ('ray', 'fsspec', 's3fs', 'denoise_batch.scaling');"
        "sys.modules.update(dict.fromkeys(extras));"  # None: an import of it fails
        "codes = [batch.main(['--help']), train.main(['--help'])];"
        f"codes.append(batch.main({arguments}));"
        "assert codes == [0, 0, 0], codes"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_numpy_is_no_dependency() -> None:
    code = (
        "import sys, warnings; sys.modules['numpy'] = None;"
        "warnings.filterwarnings('ignore', message='Failed to initialize NumPy');"
        "import pathlib, tempfile, torch;"
        "from denoise_batch.models import load_weights, save_weights;"
        "from denoise_batch.models import Network;"
        "from denoise_batch.files import images;"
        "from denoise_batch.streaming import stream;"
        "from denoise_batch.training import train;"
        "path = pathlib.Path(tempfile.mkdtemp()) / 'x.safetensors';"
        "save_weights(path, Network('tconv'), {}); load_weights(path)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_the_metadata_name_authors_pythons_and_extras() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    assert project["authors"]
    versions = {
        name.rsplit(" ", 1)[1] for name in project["classifiers"] if ":: Python :: 3." in name
    }
    assert versions == {"3.11", "3.12", "3.13", "3.14"}
    extras = project["optional-dependencies"]
    assert {extra.name for extra in EXTRAS.values()} <= extras.keys()
    assert "dev" not in extras
    # What an extra needs, its tests need.
    needed = {row for name in ("raw", "phones", "render", "scientific") for row in extras[name]}
    assert needed <= set(pyproject["dependency-groups"]["dev"])


@pytest.mark.slow
def test_an_sdist_holds_all_that_its_tests_need(tmp_path: Path) -> None:
    """Unpacked elsewhere, it holds every tracked file but dot files, and its tests pass."""
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*build, ROOT], check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (root,) = (path for path in tmp_path.iterdir() if path.is_dir())
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    expected = {name for name in tracked if name and not name.startswith(".")}
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert expected - found == set()
    assert not [name for name in found if name.endswith((".so", ".pyc"))]
    subprocess.run([root / "scripts" / "link"], check=True)
    tests = ["test_docs.py", "test_packaging.py", "pipeline/files", "pipeline/cli/test_batch.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(root / ".types")}
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in tests)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
