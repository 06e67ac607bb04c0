"""The Dockerfile parses, and what it names exists: sources, extras, packages, commands."""

import json
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTRUCTIONS = {
    "FROM", "RUN", "COPY", "ENV", "VOLUME", "USER", "WORKDIR", "ENTRYPOINT", "CMD",
}  # fmt: skip

# What PyPI's wheels of torch are built for.
CUDA_OF_TORCH = {"2.11": "13.0", "2.12": "13.0", "2.13": "13.0"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments), with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "docs/Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    return [(name, rest) for name, rest in pairs]


def arguments(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def test_it_parses() -> None:
    names = [name for name, _ in instructions()]
    assert set(names) <= INSTRUCTIONS
    assert names[0] == "FROM"
    for shell in arguments("RUN"):
        for command in shell.split("&&"):
            assert shlex.split(command)


def test_it_begins_with_a_cuda_runtime_and_has_what_triton_compiles_with() -> None:
    assert re.fullmatch(
        r"nvidia/cuda:\d+\.\d+\.\d+-(base|runtime)-ubuntu\d+\.\d+", *arguments("FROM")
    )
    packages = next(run for run in arguments("RUN") if "apt-get" in run)
    for package in ("gcc", "g++", "python3-dev", "python3-venv"):
        assert f" {package} " in packages + " "


def test_its_cuda_is_that_of_the_torch_that_it_installs() -> None:
    """Else it starts on drivers that torch refuses."""
    pins = (ROOT / "constraints.txt").read_text()
    (torch,) = re.findall(r"^torch==(\d+\.\d+)", pins, re.MULTILINE)
    (base,) = (image.partition(":")[2] for image in arguments("FROM"))
    assert base.startswith(f"{CUDA_OF_TORCH[torch]}.")
    page = (ROOT / "docs/gpu.md").read_text()
    assert f"CUDA {CUDA_OF_TORCH[torch]}" in page


def test_sources_extras_and_commands_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for copied in arguments("COPY"):
        assert (ROOT / copied.split()[0]).exists()
    install = next(run for run in arguments("RUN") if "pip install" in run)
    for extra in re.findall(r"\[(\w+)\]", install):
        assert extra in project["optional-dependencies"]
    for name in re.findall(r"/src/([\w.-]+)", install):
        assert (ROOT / name).is_file()
    (entry,) = (json.loads(rest) for rest in arguments("ENTRYPOINT"))
    assert entry[0] in project["scripts"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"kernels", "pipeline", "weights", "pyproject.toml", "constraints.txt"} & set(
        ignored
    )


def test_nobody_is_root_and_any_user_may_write_where_it_must() -> None:
    names = [name for name, _ in instructions()]
    (user,) = arguments("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    (volume,) = arguments("VOLUME")
    (folder,) = arguments("WORKDIR")
    environment = dict(part.split("=", 1) for part in shlex.split(arguments("ENV")[0]))
    assert environment["TRITON_CACHE_DIR"].startswith(f"{volume}/")
    (made,) = (shlex.split(run) for run in arguments("RUN") if run.startswith("install "))
    assert made[:4] == ["install", "--directory", "--mode", "1777"]
    assert {volume, folder, environment["HOME"], environment["TRITON_CACHE_DIR"]} <= set(made[4:])


def test_the_page_runs_it_as_the_owner_of_the_images() -> None:
    """A user of the image's own could not write into a folder of the host."""
    page = (ROOT / "docs/gpu.md").read_text()
    (command,) = re.findall(r"^docker run (?:.*\\\n)*.*$", page, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[words.index("--user") + 1] == "$(id -u):$(id -g)"
    mounts = [mount.partition(":")[2] for flag, mount in pairwise(words) if flag == "-v"]
    assert mounts == [*arguments("WORKDIR"), *arguments("VOLUME")]
