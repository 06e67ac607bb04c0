"""The units in docs/units: they call the tool as it is, apart from the rest, and know its codes."""

import configparser
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main

from denoise_batch.cli.batch import app

UNITS = Path(__file__).parents[1] / "docs" / "units"
SERVICES = ["denoise.service", "denoise-drop.service"]
PATHS = {"RequiresMountsFor", "ReadWritePaths"}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    parser.read_string((UNITS / name).read_text())
    return parser


def parse(arguments: list[str]) -> Any:
    """The parameters of a call, as the tool's own parser takes them."""
    return typer.main.get_command(app).make_context("denoise-batch", arguments).params


def test_the_page_names_every_unit() -> None:
    page = (UNITS.parent / "scheduling.md").read_text()
    assert [path.name for path in UNITS.iterdir() if f"(units/{path.name})" not in page] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_writes_where_it_may(name: str) -> None:
    service = unit(name)["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    called = parse(arguments)
    assert Path(program).name == "denoise-batch"
    assert service["ReadWritePaths"] == called["output"]
    assert unit(name)["Unit"]["RequiresMountsFor"].split() == [*called["inputs"], called["output"]]


def test_services_differ_in_what_they_do_alone() -> None:
    first, second = (dict(unit(name)["Service"]) for name in SERVICES)
    own = {"Type", "ExecStart", "SuccessExitStatus", "Restart", "RestartSec", *PATHS}
    assert {k: v for k, v in first.items() if k not in own} == {
        k: v for k, v in second.items() if k not in own
    }
    assert (first["SuccessExitStatus"], second["SuccessExitStatus"]) == ("3", "143")
    assert unit("denoise-drop.service")["Install"]["WantedBy"] == "multi-user.target"
    assert unit("denoise.timer")["Install"]["WantedBy"] == "timers.target"


needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd")


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_exposed_little(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=15"]
    done = subprocess.run([*command, UNITS / name], capture_output=True, text=True, check=False)
    if "--offline" in done.stderr:
        pytest.skip("an older systemd")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_systemd_understands_a_service(name: str, tmp_path: Path) -> None:
    text = (UNITS / name).read_text().replace("/opt/denoise/bin/denoise-batch", "/bin/true")
    (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if name in line] == []


@pytest.fixture
def pod() -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((UNITS / "cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"]


def test_the_job_tries_again_what_may_pass(pod: Any) -> None:
    fatal, drained = pod["podFailurePolicy"]["rules"]
    (container,) = pod["template"]["spec"]["containers"]
    assert fatal["onExitCodes"]["containerName"] == container["name"]
    assert (fatal["action"], fatal["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert not {0, 1, 3, 6, 7, 130, 143} & {*fatal["onExitCodes"]["values"]}
    assert drained["action"] == "Ignore"
    # A policy needs it.
    assert pod["template"]["spec"]["restartPolicy"] == "Never"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["template"]["spec"]["volumes"]}
    assert parse(container["args"])["output"] == "/data/out"


@pytest.fixture
def start(pod: Any, tmp_path: Path) -> Any:
    """Start the container's command with a stand-in for the tool."""
    (container,) = pod["template"]["spec"]["containers"]

    def started(script: str) -> subprocess.Popen[str]:
        tool = tmp_path / "denoise-batch"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = [*container["command"], *container["args"]]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    return started


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (3, 0), (7, 7), (143, 143)])
def test_an_empty_folder_is_a_success_of_the_job(start: Any, code: int, expected: int) -> None:
    process = start(f'echo "$@"; exit {code}')
    said, _ = process.communicate(timeout=20)
    assert process.returncode == expected
    assert said.split()[:3] == ["/data/in", "-o", "/data/out"]


@pytest.mark.parametrize("code", [143, 0])
def test_sigterm_reaches_the_tool_which_may_finish(start: Any, code: int) -> None:
    work = "while :; do sleep 0.05; done"
    process = start(f"trap 'sleep 0.3; echo finished; exit {code}' TERM; echo ready; {work}")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert (said, process.returncode) == ("finished\n", code)
