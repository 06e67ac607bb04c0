"""The documents: links lead somewhere, every command is real, and the examples run."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        # What scripts/gpu-check writes there is a record, no page.
        if page.parent.name != "gpu-results" or page.name == "README.md"
    ),
    ROOT / "weights" / "README.md",
]
SOURCES = [
    file for folder in ("kernels", "pipeline", "scripts", "tests", "weights")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if file != Path(__file__)
]  # fmt: skip
TOOLS = {
    "denoise-batch": "batch", "denoise-train": "train",
    "denoise-eval": "evaluate", "denoise-doctor": "doctor", "denoise-export": "export",
    "scripts/denoise": "batch", "denoise_batch": "batch", "denoise_batch.training": "train",
}  # fmt: skip
# The pages whose commands are run, on small pictures; all commands of all pages are parsed.
RUN = (
    "README.md",
    "docs/quickstart.md",
    "docs/reports.md",
    "docs/training.md",
    "docs/troubleshooting.md",
)
# Needs a GPU or a cluster, a network, hours, or ends with a signal only.
COSTLY = ("cuda", "://", "--watch", "--engine", "scripts/corpus")


def of_root(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of every fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def command(line: str) -> tuple[str, list[str]] | None:
    """The tool that a line of a shell, a unit file or a manifest calls, and its arguments."""
    if found := re.search(r"command: (\[.*\])", line):
        line = shlex.join(json.loads(found[1]))
    try:
        words = shlex.split(line.replace("ExecStart=", ""), comments=True)
    except ValueError:  # a lone quote: prose
        return None
    for at, word in enumerate(words):
        tool = word if word in TOOLS else word.rsplit("/", 1)[-1]
        is_called = words[at - 1] == "-m" if tool.startswith("denoise_batch") else tool in TOOLS
        if is_called and tool in TOOLS:
            arguments = [re.sub(r"\$\w+", "1", word) for word in words[at + 1 :] if word != "…"]
            ends = (i for i, word in enumerate(arguments) if word in ("&&", "|", ";", ">"))
            return tool, arguments[: next(ends, None)]
    return None


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command in the page's blocks."""
    for language, text in blocks(page):
        if language not in ("python", "json", "text"):
            lines = text.replace("\\\n", " ").splitlines()
            yield from filter(None, map(command, lines))


def inline_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command between backquotes in the page's prose, which may leave out arguments."""
    for text in re.findall(r"`([^`]+)`", prose(page)):
        if re.match(r"(DENOISE\w+=\w+ )?(denoise-|scripts/denoise|torchrun|python -m)", text):
            yield from filter(None, [command(" ".join(text.split()))])


def parse(tool: str, arguments: list[str]) -> Any:
    """The command's context, as its own parser makes it; nothing is run."""
    app = import_module(f"denoise_batch.cli.{TOOLS[tool]}").app
    return typer.main.get_command(app).make_context(tool, list(arguments))


def run(tool: str, arguments: list[str]) -> int:
    code: int = import_module(f"denoise_batch.cli.{TOOLS[tool]}").main(arguments)
    return code


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with all that the examples name, as small as it can be."""
    noise = torch.randint(0, 256, (24 * 32 * 3,), generator=torch.Generator().manual_seed(0))
    image = Image.frombytes("RGB", (32, 24), bytes(noise.tolist()))
    names = [
        "a.png",
        "noisy.png",
        "scans/a.tif",
        "docs/samples/noisy/a.png",
        "docs/samples/clean/a.png",
    ]
    folders = ("imgs", "noisy", "clean", "photos", "shots/noisy", "shots/clean")
    names += [f"{folder}/a.png" for folder in folders]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    for run_folder in ("mine", "unet"):
        (tmp_path / "runs" / run_folder).mkdir(parents=True)
        weights = ROOT / "weights" / "tconv.safetensors"
        shutil.copy(weights, tmp_path / "runs" / run_folder / "best.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=of_root)
def test_links_lead_somewhere(page: Path) -> None:
    def is_broken(link: str) -> bool:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        return not target.exists() or (anchor != "" and anchor not in anchors(target))

    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    assert [link for link in links if "://" not in link and is_broken(link)] == []


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=of_root)
def test_no_page_is_lost(page: Path) -> None:
    """Every page can be reached from the README."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        here = todo.pop().resolve()
        if here not in reached and here.suffix == ".md":
            reached.add(here)
            links = re.findall(r"\]\(([^)#\s]+)", prose(here))
            todo += [here.parent / link for link in links if "://" not in link]
    assert page in reached


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "design" / "adr"
    listed = re.findall(r"\]\((\d{4}-.*?\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


def test_the_code_names_documents_that_exist() -> None:
    missing = {
        (of_root(file), name)
        for file in (*SOURCES, *PAGES)
        for name in re.findall(r"\bdocs/[a-z0-9_./-]*[a-z0-9]", file.read_text())
        if not any(ROOT.glob(name + "*"))
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=of_root)
def test_the_pages_name_files_that_exist(page: Path) -> None:
    named = re.findall(r"`((?:kernels|pipeline|scripts|tests|weights)/[\w./-]+)`", prose(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_contributing_names_every_folder() -> None:
    named = set(re.findall(r"`([\w/]+)/`", (ROOT / "CONTRIBUTING.md").read_text()))
    parents = (ROOT, ROOT / "pipeline", ROOT / "scripts")
    assert [name for name in named if not any((parent / name).is_dir() for parent in parents)] == []
    folders = {
        path.name
        for parent in parents[1:]
        for path in parent.iterdir()
        if any(path.glob("*.py")) and path.name != "__pycache__"
    }
    assert folders - named == set()


def test_the_pages_hold_commands() -> None:
    """The parser below finds what a reader finds."""
    found = {name: len(list(commands(ROOT / name))) for name in RUN}
    assert found["README.md"] >= 15
    assert all(found.values())
    unfenced = r"^    .*\bdenoise-(batch|train|eval|doctor|export)\b"
    assert [page for page in PAGES if re.search(unfenced, prose(page), re.MULTILINE)] == []
    assert [tool for tool, _ in commands(ROOT / "docs" / "scheduling.md")] == ["denoise-batch"] * 3
    assert {tool for tool, _ in commands(ROOT / "docs" / "scaling.md")} == {
        "denoise-batch", "denoise_batch.training",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=of_root)
def test_every_command_is_parsed(page: Path) -> None:
    for tool, arguments in commands(page):
        assert parse(tool, arguments).params, (tool, arguments)


@pytest.mark.parametrize("page", PAGES, ids=of_root)
def test_every_option_in_the_prose_exists(page: Path) -> None:
    for tool, arguments in inline_commands(page):
        app = import_module(f"denoise_batch.cli.{TOOLS[tool]}").app
        parameters = typer.main.get_command(app).params
        known = {"--help"}.union(*(p.opts + p.secondary_opts for p in parameters))
        options = {word.split("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
        assert options <= known, (tool, arguments)


def cheap() -> list[Any]:
    found = []
    for name in RUN:
        for tool, arguments in commands(ROOT / name):
            line = " ".join([tool, *arguments])
            if TOOLS[tool] in ("batch", "evaluate") and not any(word in line for word in COSTLY):
                found.append(pytest.param(tool, arguments, id=f"{name}: {line}"))
    return found


@pytest.mark.parametrize(("tool", "arguments"), cheap())
def test_the_cheap_commands_run(tool: str, arguments: list[str], pictures: Path) -> None:
    assert run(tool, arguments) == 0


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(text, id=f"{name} {number}")
        for name in ("README.md", "docs/python.md")
        for number, (language, text) in enumerate(blocks(ROOT / name))
        if language == "python"
    ],
)
def test_the_python_examples_run(code: str, pictures: Path) -> None:
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
