"""Bugs put into the kernels: would these tests notice?"""

from typing import Any

import pytest
from triton_children.bugs import MUTANTS

pytestmark = pytest.mark.child("mutants")


@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS if mutant.old])
def test_a_bug_is_noticed(name: str, children: Any) -> None:
    said = children.row("mutants", name)["said"]
    assert all(said), f"the cases passed: {said}"


@pytest.mark.parametrize("name", ["nothing"])
def test_the_kernels_as_they_are_pass_the_same_cases(name: str, children: Any) -> None:
    assert not any(children.row("mutants", name)["said"])
