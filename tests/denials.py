"""Calls of the system that fail for some paths."""

import os
from collections.abc import Callable
from typing import Any

import pytest


def deny(
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    kind: type[OSError],
    is_denied: Callable[[str], bool],
) -> None:
    """Let `os.<call>` raise this error for the paths that are denied."""
    original = getattr(os, call)
    number = {PermissionError: 13, FileNotFoundError: 2}[kind]

    def denying(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        if is_denied(str(path)):
            raise kind(number, os.strerror(number), str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, call, denying)
