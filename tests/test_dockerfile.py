"""The Dockerfile parses, and what it names exists: sources, extras, packages, commands."""

import json
import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTRUCTIONS = {
    "FROM", "RUN", "COPY", "ENV", "VOLUME", "USER", "WORKDIR", "ENTRYPOINT", "CMD",
}  # fmt: skip


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


def test_nobody_is_root_and_the_cache_is_a_volume_of_its_user() -> None:
    names = [name for name, _ in instructions()]
    (user,) = arguments("USER")
    assert user != "root"
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    (volume,) = arguments("VOLUME")
    environment = dict(part.split("=", 1) for part in shlex.split(arguments("ENV")[0]))
    assert environment["TRITON_CACHE_DIR"].startswith(f"{volume}/")
    assert any(f"--owner {user}" in run and f" {volume}" in run for run in arguments("RUN"))
