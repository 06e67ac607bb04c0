"""`--files-from`: which files a list names, and where their outputs go."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import picture

from denoise_batch.cli.batch import main


@pytest.fixture
def tree(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with scans/a.png, scans/deep/er/b c.png, scans/d.png, other/a.png."""
    for index, name in enumerate(("scans/a.png", "scans/deep/er/b c.png", "scans/d.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(24, 20, index).save(tmp_path / name)
    (tmp_path / "other").mkdir()
    picture(24, 20, 7).save(tmp_path / "other/a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(weights: Path, *arguments: str | Path) -> int:
    return main([*map(str, arguments), "-w", str(weights), "-d", "cpu", "--log", "plain"])


def below(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix() for p in paths if ".denoise-batch" not in p.parts}


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    "content",
    [
        b"a.png\ndeep/er/b c.png\n",
        b"a.png\ndeep/er/b c.png",
        b"a.png\r\n\r\ndeep/er/b c.png\r\n",
        b"\xef\xbb\xbfa.png\n./deep/er/b c.png\n",
        b"deep\n../scans/a.png\na.png\n",
        b"a.png\0deep/er/b c.png\0",
    ],
    ids=["lines", "no-end", "CRLF", "BOM", "folder", "NUL"],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_list_below_an_input_gives_what_the_folder_gives(
    content: bytes, source: str, tree: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, content)
    (tree / "list").write_bytes(content)
    null = ["--null"] if b"\0" in content else []
    name = "list" if source == "file" else "-"
    assert run(weights, "scans", "--files-from", name, *null) == 0
    assert below(tree / "scans-denoised") == {"a.png", "deep/er/b c.png"}
    assert run(weights, "scans") == 0  # which finds these two done
    assert below(tree / "scans-denoised") == {"a.png", "deep/er/b c.png", "d.png"}


def test_without_an_input_paths_are_kept(tree: Path, weights: Path) -> None:
    names = ["scans/a.png", "other/a.png", str(tree / "scans" / "d.png")]
    (tree / "list").write_text("\n".join(names))
    assert run(weights, "--files-from", "list", "-o", "out") == 0
    absolute = (tree / "scans" / "d.png").relative_to(tree.anchor).as_posix()
    assert below(tree / "out") == {"scans/a.png", "other/a.png", absolute}


def test_an_absolute_path_below_the_input_is_relative_to_it(tree: Path, weights: Path) -> None:
    (tree / "list").write_text(f"{tree}/scans/deep/er/b c.png\n")
    assert run(weights, "scans", "-o", "out", "--files-from", "list") == 0
    assert below(tree / "out") == {"deep/er/b c.png"}


def test_with_neither_input_nor_output_each_is_beside_its_file(tree: Path, weights: Path) -> None:
    (tree / "list").write_text("scans/a.png\nother\n")
    for _ in range(2):
        assert run(weights, "--files-from", "list") == 0
    assert (tree / "scans/a-denoised.png").exists()
    assert below(tree / "other-denoised") == {"a.png"}


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX")
def test_names_are_taken_as_they_are(tree: Path, weights: Path) -> None:
    """Bytes that are no text, spaces at the ends, wildcards, a comment's sign, a line break."""
    names = [b"\xff\xfe.png", b" x .png", b"[ab]*.png", b"#1.png", b"-o.png", b"new\nline.png"]
    for index, name in enumerate(names):
        picture(24, 20, index).save(os.fsdecode(b"scans/" + name))
    (tree / "list").write_bytes(b"\0".join(names))
    assert run(weights, "scans", "-o", "out", "--files-from", "list", "-0") == 0
    assert sorted(os.fsencode(name) for name in below(tree / "out")) == sorted(names)
    (tree / "lines").write_bytes(b"\n".join(names[:-1]))
    assert run(weights, "scans", "-o", "out2", "--files-from", "lines") == 0
    assert sorted(os.fsencode(name) for name in below(tree / "out2")) == sorted(names[:-1])


def test_what_cannot_be_found_fails_alone_with_its_line(
    tree: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "x" * 300 + ".png"
    (tree / "list").write_text(f"a.png\ngone.png\n\n../other/a.png\n{long}\ns3://b/a.png\n")
    assert run(weights, "scans", "-o", "out", "--files-from", "list") == 1
    assert below(tree / "out") == {"a.png"}
    err = capsys.readouterr().err
    assert "list, line 2: gone.png: no such file" in err
    assert f"list, line 4: ../other/a.png: is not below {tree}/scans" in err
    assert "list, line 5: xxx" in err
    assert "list, line 6: s3://b/a.png: is a URL" in err
    (tree / "list").write_bytes(b"d.png\0gone.png\0")
    assert run(weights, "scans", "-o", "out", "--files-from", "list", "--null") == 1
    assert "list, name 2: gone.png" in capsys.readouterr().err


def test_own_outputs_are_left_out_and_told_of(
    tree: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        found = sorted(path for path in below(tree) if path.endswith(".png"))
        (tree / "list").write_text("\n".join(found))
        assert run(weights, "--files-from", "list", "-o", "out") == 0
    assert len(below(tree / "out")) == 4
    assert "list: 4 left out" in caplog.text


@pytest.mark.parametrize(
    ("content", "arguments", "code", "says"),
    [
        (None, ["--files-from", "none"], 2, "--files-from none: cannot be read: No such file"),
        (None, ["--files-from", "scans"], 2, "--files-from scans: cannot be read"),
        (None, ["--files-from", ""], 2, "--files-from is empty"),
        (None, ["scans", "--null"], 2, "--null: goes with --files-from"),
        (b"a.png\0", ["--files-from", "list"], 2, "line 1 has a NUL byte"),
        ("a.png\n".encode("utf-16"), ["--files-from", "list"], 2, "is UTF-16"),
        (b"a.png", ["scans", "other", "--files-from", "list"], 2, "give one INPUT or none"),
        (b"a.png", ["scans/a.png", "--files-from", "list"], 2, "scans/a.png: is no folder"),
        (b"a.png", ["scans", "--files-from", "list", "-o", "scans"], 2, "overwrite the input"),
        (b"scans/a.png", ["--files-from", "list", "-o", "."], 2, "overwrite the input"),
        (b"scans/a.png", ["--files-from", "list", "-o", "x.png"], 2, "is a file; name a folder"),
        (b"scans/a.png", ["--files-from", "list", "--watch", "1"], 2, "--watch"),
        (b"", ["--files-from", "list", "-o", "out"], 3, "--files-from list: no images found"),
        (b"\r\n\n", ["--files-from", "list", "-o", "out"], 3, "no images found"),
        (b"gone.png", ["--files-from", "list", "-o", "out"], 6, "line 1: gone.png"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(
    content: bytes | None,
    arguments: list[str],
    code: int,
    says: str,
    tree: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tree / "list").write_bytes(content)
    assert run(weights, *arguments) == code
    assert says in capsys.readouterr().err


def test_a_dry_run_and_shards_know_the_list(
    tree: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "list").write_text("a.png\nd.png\ndeep\ngone.png\n")
    arguments = ["scans", "-o", "out", "--files-from", "list"]
    assert run(weights, *arguments, "--dry-run") == 0
    out = capsys.readouterr().out
    assert f"would denoise {Path('scans/d.png')} → {Path('out/d.png')}" in out
    assert "would fail scans/gone.png (list, line 4" in out
    assert "3 to denoise, 0 to skip, 1 to fail" in out
    assert not (tree / "out").exists()
    for shard in ("1/2", "2/2"):
        assert run(weights, *arguments, "--shard", shard) in (0, 1, 6)
    assert below(tree / "out") == {"a.png", "d.png", "deep/er/b c.png"}


def test_a_pipe_of_find(tree: Path, weights: Path) -> None:
    program = f'"{sys.executable}" -m denoise_batch'
    options = f'--files-from - --null -o out -w "{weights}" -d cpu --log json'
    script = f"find scans -name '*.png' -print0 | {program} {options}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert below(tree / "out") == {"scans/a.png", "scans/d.png", "scans/deep/er/b c.png"}
    assert json.loads(done.stdout.splitlines()[-1])["done"] == 3
