"""The children's results: all are started, beside each other, when the first test asks for any."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from launches import Launch, record_launches
from triton_children.run import Child


class Children:
    """What the children said, by child and name."""

    def __init__(self, cache: Path, names: dict[str, list[str]]) -> None:
        self._running = {
            child: [Child(child, half, cache) for half in _halves(chosen)]
            for child, chosen in names.items()
        }

    def row(self, child: str, name: str) -> dict[str, object]:
        """What was said about `name`; waits for the end of the child that was asked."""
        asked = next(each for each in self._running[child] if name in each.names)
        return asked.rows()[name]

    def stop(self) -> None:
        for children in self._running.values():
            for child in children:
                child.stop()


def _halves(names: list[str]) -> list[list[str]]:
    """The unet's launches are half of the work, and are compiled once if they are in one child."""
    unet = [name for name in names if "unet" in name]
    others = [name for name in names if "unet" not in name]
    return [half for half in (unet, others) if half]


@pytest.fixture(scope="session")
def children(
    request: pytest.FixtureRequest,
) -> Iterator[Children]:
    """Asked only for what the session's tests want: `-k` of one case runs one case.

    What was compiled is kept in .pytest_cache, under a hash of source and options.
    """
    if importlib.util.find_spec("triton") is None:  # it has no wheels but for Linux
        pytest.skip("triton is not installed")
    chosen: dict[str, list[str]] = {}
    for item in request.session.items:
        marker = item.get_closest_marker("child")
        name = getattr(item, "callspec", None)
        if marker is not None and name is not None:
            chosen.setdefault(marker.args[0], []).append(name.params["name"])
    cache = request.config.cache.mkdir("triton")
    started = Children(
        cache, {child: list(dict.fromkeys(names)) for child, names in chosen.items()}
    )
    yield started
    started.stop()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the launchers launch, on tensors of any device: nothing runs."""
    return record_launches(monkeypatch)
