"""What the tests of training share."""

import sys

import pytest


@pytest.fixture
def curves() -> None:
    """Requested by tests that need curves.png."""


@pytest.fixture(autouse=True)
def _without_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curves.png unless a test asks for it: that takes as long as a small run."""
    if "curves" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
