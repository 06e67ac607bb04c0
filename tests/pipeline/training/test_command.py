"""denoise-train and denoise-eval as commands: defaults, help, version."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import version
from typing import get_type_hints

import pytest

from denoise_batch.cli import evaluate, train
from denoise_batch.training.options import TrainOptions


def test_the_command_has_names_types_and_defaults_of_the_options() -> None:
    """It passes what the user chose to TrainOptions by name; see `_given`."""
    parameters, types = inspect.signature(train.train).parameters, get_type_hints(train.train)
    options = {field.name: field for field in fields(TrainOptions)}
    field_types = get_type_hints(TrainOptions)
    extra = {"context", "bursts", "show_version"}
    assert parameters.keys() - options.keys() == extra
    assert options.keys() - parameters.keys() == {"kind"}
    dependent = {"network", "lr", "momentum", "self_supervised"}  # they follow other options
    parsed = {"value_range"}
    for name in parameters.keys() & options.keys() - dependent - parsed:
        assert types[name] == field_types[name], name
        if name not in ("data", "output"):
            assert parameters[name].default == options[name].default, name
    for name in dependent:
        assert types[name] == field_types[name] | None, name
        assert parameters[name].default is None, name


@pytest.mark.parametrize("main", [train.main, evaluate.main], ids=["train", "eval"])
def test_help_has_panels_examples_and_flags_without_a_type(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-h"]) == 0
    short = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == short
    assert "<bool>" not in short
    assert "Network ─" in short
    assert "Examples" in short
    assert "--install-completion" in short


@pytest.mark.parametrize("main", [train.main, evaluate.main], ids=["train", "eval"])
def test_every_command_tells_the_version(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"denoise-batch {version('denoise-batch')}"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from denoise_batch.cli import evaluate, train;"
        "assert evaluate.main(['-h']) == train.main(['-h']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
