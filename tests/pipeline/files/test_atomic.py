"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from denoise_batch.files.atomic import atomic_file, atomic_write


def test_the_content_is_there_and_nothing_else(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def write_half_of_it() -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half_of_it()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["x" * 250 + ".png", "画" * 80 + ".png"], ids=["long", "unicode"])
def test_any_name_that_the_file_system_takes_is_taken(tmp_path: Path, name: str) -> None:
    atomic_write(tmp_path / name, b"")
    assert (tmp_path / name).exists()


def test_a_missing_folder_is_the_callers_to_explain(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "none" / "a", b"")
