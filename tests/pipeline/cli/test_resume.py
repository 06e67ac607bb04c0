"""A second run does what is new, changed or left, and nothing else."""

import json
import os
import shutil
import time
import unicodedata
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from denials import deny
from pictures import picture
from PIL import Image

from denoise_batch.cli.batch import main
from denoise_batch.files.atomic import atomic_file, temporary_name
from denoise_batch.kernels import OptionError
from denoise_batch.models import Network, save_weights
from denoise_batch.options import DenoiseOptions
from denoise_batch.streaming.manifest import locked, sha256_of
from denoise_batch.streaming.session import Session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imgs/0.png … imgs/3.png."""
    root = tmp_path / "imgs"
    root.mkdir()
    for index in range(4):
        picture(24, 20, index).save(root / f"{index}.png")
    return root


def run(
    capsys: pytest.CaptureFixture[str], folder: Path, weights: Path, *more: str, code: int = 0
) -> dict[str, list[str]]:
    """Names of images by what became of them."""
    capsys.readouterr()
    arguments = [str(folder), "-w", str(weights), "-d", "cpu", "--log", "json", *more]
    assert main(arguments) == code
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    images = [event for event in events if event["event"] == "image"]
    return {
        status: sorted(event["name"] for event in images if event["status"] == status)
        for status in ("done", "skipped", "failed")
        if any(event["status"] == status for event in images)
    }


ALL = ["0.png", "1.png", "2.png", "3.png"]


def test_what_is_up_to_date_is_skipped(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, folder, weights) == {"done": ALL}
    assert run(capsys, folder, weights) == {"skipped": ALL}
    assert run(capsys, folder, weights, "--overwrite") == {"done": ALL}


def test_a_changed_input_is_done_again_and_a_touched_one_is_not(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, folder, weights)
    picture(24, 20, 9).save(folder / "1.png")
    os.utime(folder / "2.png", (1, 1))
    picture(24, 20, 5).save(folder / "new.png")
    assert run(capsys, folder, weights) == {
        "done": ["1.png", "new.png"],
        "skipped": ["0.png", "2.png", "3.png"],
    }


def test_other_weights_or_options_make_everything_anew(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, folder, weights)
    other = tmp_path / "other.safetensors"
    save_weights(other, Network("tconv", generator=torch.Generator().manual_seed(1)), {})
    assert run(capsys, folder, other) == {"done": ALL}
    assert run(capsys, folder, other, "--strength", "0.5") == {"done": ALL}
    assert run(capsys, folder, other, "--strength", "0.5", "-b", "1") == {"skipped": ALL}


def test_what_is_missing_is_made_again(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, folder, weights)
    (folder.with_name("imgs-denoised") / "2.png").unlink()
    assert run(capsys, folder, weights) == {
        "done": ["2.png"],
        "skipped": ["0.png", "1.png", "3.png"],
    }


def test_a_file_of_somebody_else_is_never_replaced_unasked(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder.with_name("imgs-denoised")
    output.mkdir()
    (output / "0.png").write_bytes(b"mine")
    assert run(capsys, folder, weights) == {"done": ALL[1:], "skipped": ["0.png"]}
    # Nor one of ours that was edited, even when its input changes.
    (output / "1.png").write_bytes(b"edited")
    picture(24, 20, 9).save(folder / "1.png")
    assert run(capsys, folder, weights) == {"skipped": ALL}
    assert (output / "0.png").read_bytes() == b"mine"
    assert (output / "1.png").read_bytes() == b"edited"
    assert run(capsys, folder, weights, "--overwrite") == {"done": ALL}
    with Image.open(output / "0.png") as image:
        assert image.size == (24, 20)


def test_an_output_of_another_image_is_not_replaced_by_a_namesake(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    run(capsys, folder, weights, "-o", out)
    before = (tmp_path / "out" / "0.png").read_bytes()
    tuesday = tmp_path / "tuesday"
    tuesday.mkdir()
    picture(16, 16).save(tuesday / "0.png")
    assert run(capsys, tuesday, weights, "-o", out, code=6) == {"failed": ["0.png"]}
    assert main([str(tuesday), "-o", out, "-w", str(weights), "-d", "cpu"]) == 6
    said = capsys.readouterr().err
    assert said.startswith("0 to denoise, fp32 on cpu")
    assert f"is the output of {folder / '0.png'}" in said
    assert main([str(tuesday), "-o", out, "-w", str(weights), "-d", "cpu", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "would fail" in said
    assert "0 to denoise, 0 to skip, 1 to fail" in said
    assert (tmp_path / "out" / "0.png").read_bytes() == before
    # With other options too; not if it is asked for, or the other image is gone.
    assert run(capsys, tuesday, weights, "-o", out, "--strength", "0", code=6)
    assert run(capsys, tuesday, weights, "-o", out, "--overwrite") == {"done": ["0.png"]}
    assert run(capsys, folder, weights, "-o", out, code=1)["failed"] == ["0.png"]
    (tuesday / "0.png").unlink()
    assert run(capsys, folder, weights, "-o", out)["done"] == ["0.png"]


def test_namesakes_are_told_apart_whatever_else_was_made_or_touched(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, tuesday = str(tmp_path / "out"), tmp_path / "tuesday"
    for path in (folder, tuesday):
        path.mkdir(exist_ok=True)
        picture(16, 16, len(path.name)).save(path / "x.bmp")
        os.utime(path / "x.bmp", ns=(10**18, 10**18))
    run(capsys, folder, weights, "-o", out)
    run(capsys, folder, weights, "-o", out, "--suffix", "_soft", "--strength", "0.5")
    # Of one size and one time, but not the same.
    assert run(capsys, tuesday, weights, "-o", out, code=6) == {"failed": ["x.bmp"]}
    os.utime(folder / "x.bmp")
    assert run(capsys, tuesday, weights, "-o", out, code=6) == {"failed": ["x.bmp"]}


def test_a_namesake_in_the_same_folder_is_kept_by_a_run_that_does_not_see_it(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two globs of one folder, by turns: neither run has another output for the other's image."""
    out, more = tmp_path / "out", ("-o", str(tmp_path / "out"), "--format", "png")
    picture(24, 20, 1).save(folder / "x.bmp")
    picture(24, 20, 2).save(folder / "x.gif")
    assert run(capsys, folder / "*.bmp", weights, *more) == {"done": ["x.bmp"]}
    before = (out / "x.png").read_bytes()
    assert run(capsys, folder / "*.gif", weights, *more, code=6) == {"failed": ["x.gif"]}
    assert run(capsys, folder / "*.bmp", weights, *more) == {"skipped": ["x.bmp"]}
    assert (out / "x.png").read_bytes() == before
    (folder / "x.bmp").unlink()
    assert run(capsys, folder / "*.gif", weights, *more) == {"done": ["x.gif"]}


def test_a_shard_takes_the_output_of_a_namesake_in_its_folder(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That one has another output now, from whichever shard."""
    picture(16, 16).convert("P").save(folder / "x.gif")
    run(capsys, folder, weights)
    picture(20, 16).save(folder / "x.png")
    done: list[str] = []
    for number in (1, 2):
        done += run(capsys, folder, weights, "--shard", f"{number}/2").get("done", [])
    assert sorted(done) == ["x.gif", "x.png"]


def test_a_folder_that_was_renamed_is_known_again(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    run(capsys, folder, weights, "-o", out)
    renamed = folder.rename(tmp_path / "renamed")
    assert run(capsys, renamed, weights, "-o", out) == {"skipped": ALL}
    picture(24, 20, 9).save(renamed / "1.png")
    assert run(capsys, renamed, weights, "-o", out)["done"] == ["1.png"]


def test_a_copied_output_folder_is_known_again(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, folder, weights)
    copy = tmp_path / "copy"
    shutil.copytree(folder.with_name("imgs-denoised"), copy, copy_function=shutil.copyfile)
    assert run(capsys, folder, weights, "-o", str(copy)) == {"skipped": ALL}


def test_a_torn_manifest_loses_its_last_line_only(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, folder, weights)
    output = folder.with_name("imgs-denoised")
    manifest = output / ".denoise-batch" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    lost = json.loads(manifest.read_text().splitlines()[-1][:40].split(", ")[0] + "}")["output"]
    assert run(capsys, folder, weights) == {"skipped": ALL}  # the lost one as somebody else's
    assert run(capsys, folder, weights, "--overwrite", "--limit", "1")["done"] == ["0.png"]
    (output / lost).unlink()
    assert run(capsys, folder, weights)["done"] == [lost]
    assert run(capsys, folder, weights) == {"skipped": ALL}


@pytest.mark.parametrize("way", ["runs", "watch"])
def test_the_manifest_does_not_grow_for_ever(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    options = DenoiseOptions(
        (str(folder),), weights=str(weights), device="cpu", strength=0.0, overwrite=True
    )
    with Session(options) as session:
        for _ in range(25):
            if way == "watch":
                session.run(session.jobs())
            else:
                run(capsys, folder, weights, "--overwrite", "--strength", "0")
    manifest = folder.with_name("imgs-denoised") / ".denoise-batch" / "manifest.jsonl"
    assert len(manifest.read_text().splitlines()) < 90
    assert run(capsys, folder, weights, "--strength", "0") == {"skipped": ALL}


def test_what_a_shard_drops_is_only_its_own(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in ("1/3", "2/3"):
        run(capsys, folder, weights, "--strength", "0", "--shard", shard)
    state = folder.with_name("imgs-denoised") / ".denoise-batch"
    other = (state / "manifest-1-of-3.jsonl").read_bytes()
    own = state / "manifest-2-of-3.jsonl"
    own.write_bytes(own.read_bytes() * 50)
    names = run(capsys, folder, weights, "--strength", "0", "--shard", "2/3")["skipped"]
    assert len(own.read_text().splitlines()) == len(names) == 3
    assert (state / "manifest-1-of-3.jsonl").read_bytes() == other
    assert run(capsys, folder, weights, "--strength", "0") == {"skipped": ALL}


def test_an_output_that_another_spelling_already_names_is_ours(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where case does not count, a second file meets the first one's output; here by a link."""
    output = folder.with_name("imgs-denoised")
    picture(24, 20, 7).save(folder / "a.png")
    assert run(capsys, folder, weights)["done"] == [*ALL, "a.png"]
    (output / "A.png").hardlink_to(output / "a.png")
    picture(24, 20, 8).save(folder / "A.png")
    assert run(capsys, folder, weights)["done"] == ["A.png", "a.png"]
    (output / "B.png").write_bytes(b"somebody's")
    (output / "b.png").write_bytes(b"somebody's too")
    picture(24, 20, 9).save(folder / "b.png")
    assert run(capsys, folder, weights) == {"skipped": [*ALL, "A.png", "a.png", "b.png"]}


def test_a_folder_in_the_place_of_an_output_is_no_output(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.with_name("imgs-denoised") / "0.png").mkdir(parents=True)
    assert run(capsys, folder, weights, code=1) == {"done": ALL[1:], "failed": ["0.png"]}
    assert run(capsys, folder, weights, code=1) == {"skipped": ALL[1:], "failed": ["0.png"]}


def test_a_second_run_on_one_output_is_refused(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder.with_name("imgs-denoised")
    with locked(output):
        assert main([str(folder), "-w", str(weights), "-d", "cpu"]) == 2
        assert "another denoise-batch" in capsys.readouterr().err
        assert run(capsys, folder, weights, "--shard", "1/2", code=2) == {}
    with locked(output, "-1-of-2"):
        assert run(capsys, folder, weights, code=2) == {}
        assert run(capsys, folder, weights, "--shard", "1/2", code=2) == {}
        run(capsys, folder, weights, "--shard", "2/2")
    run(capsys, folder, weights, "--shard", "1/2")
    assert run(capsys, folder, weights) == {"skipped": ALL}


def test_shards_of_another_split_are_refused(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their images are partly the same."""
    output = folder.with_name("imgs-denoised")
    for index in range(4, 20):
        picture(24, 20, index).save(folder / f"{index}.png")
    with locked(output, "-1-of-2"):
        assert run(capsys, folder, weights, "--shard", "1/3", code=2) == {}
        assert main([str(folder), "-w", str(weights), "-d", "cpu", "--shard", "2/3"]) == 2
        assert "another denoise-batch (--shard 1/2) is writing there" in capsys.readouterr().err
        run(capsys, folder, weights, "--shard", "2/2")
    run(capsys, folder, weights, "--shard", "1/3")


def test_refusing_an_unsharded_run_keeps_no_shard_out(tmp_path: Path) -> None:
    """It looks at the shards' locks without waiting, so its own is held for a moment only."""
    with locked(tmp_path, "-1-of-2"):
        started = time.monotonic()
        with pytest.raises(OptionError, match="another denoise-batch"), locked(tmp_path):
            pass
        assert time.monotonic() - started < 1
        with locked(tmp_path, "-2-of-2"):
            pass


@pytest.mark.parametrize("kind", ["symlink", "folder"])
def test_a_lock_that_cannot_be_taken_is_an_error(kind: str, tmp_path: Path) -> None:
    (tmp_path / ".denoise-batch").mkdir()
    lock = tmp_path / ".denoise-batch" / "lock"
    if kind == "symlink":
        (tmp_path / "elsewhere").touch()
        lock.symlink_to(tmp_path / "elsewhere")
    else:
        lock.mkdir()
    with pytest.raises(OptionError, match="lock: is not a file"), locked(tmp_path):
        pass


def test_shards_share_the_work_out(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = [run(capsys, folder, weights, "--shard", f"{i}/3").get("done", []) for i in (1, 2, 3)]
    assert sorted(name for share in shares for name in share) == ALL
    # What is new moves nobody from one shard to another.
    for index in range(4, 12):
        picture(24, 20, index).save(folder / f"{index}.png")
    for number, share in enumerate(shares, 1):
        again = run(capsys, folder, weights, "--shard", f"{number}/3")
        assert again.get("skipped", []) == share


def test_the_limit_leaves_the_rest_for_the_next_run(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, folder, weights, "--limit", "3") == {"done": ALL[:3]}
    assert run(capsys, folder, weights, "--limit", "3") == {"done": ["3.png"], "skipped": ALL[:3]}


LONG = "2026-04-12_survey_north-sector_camera-left_1.png"


@pytest.mark.parametrize("is_first", [True, False], ids=["first run", "nothing to do"])
def test_half_written_remains_of_killed_runs_go(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], is_first: bool
) -> None:
    """Those of inputs and folders that are gone, too."""
    output = folder.with_name("imgs-denoised")
    (output / "gone" / "er").mkdir(parents=True)
    if not is_first:
        run(capsys, folder, weights)
    for name in ("0.png", "other.png", "gone/er/x.png", LONG, ".denoise-batch/manifest.jsonl"):
        (output / name).parent.mkdir(exist_ok=True)
        temporary_name(output / name).write_bytes(b"half")
    temporary_name(output / "1.png").touch(mode=0o444)
    run(capsys, folder, weights)
    assert sorted(p.name for p in output.rglob("*") if p.is_file()) == [
        *ALL,
        "lock",
        "manifest.jsonl",
    ]


def test_remains_beside_inputs_go_where_outputs_are(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "private").mkdir()
    mine = temporary_name(folder / "private" / "0.png")
    for left in (mine, temporary_name(folder / "gone-denoised.png")):
        left.write_bytes(b"half")
    run(capsys, folder / "0.png", weights)
    assert sorted(folder.rglob("*.tmp")) == [mine]


def test_other_temporary_files_stay(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder.with_name("imgs-denoised")
    output.mkdir()
    others = [".notes.tmp", ".0.png.00000000.00000000.tmp", "a.tmp", ".0.png.part"]
    for name in others:
        (output / name).write_bytes(b"mine")
    linked = temporary_name(output / "2.png")
    linked.symlink_to(output / "a.tmp")
    run(capsys, folder, weights)
    assert sorted(p.name for p in output.iterdir() if p.is_file()) == sorted(
        [*others, linked.name, *ALL]
    )


@pytest.mark.parametrize("name", ["0.png", "sub/0.png"])
def test_what_a_living_process_is_writing_stays(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Also an output of this run, which another root may have in hand."""
    output = folder.with_name("imgs-denoised")
    (output / "sub").mkdir(parents=True)
    with atomic_file(output / name) as file:
        file.write(b"half")
        assert run(capsys, folder, weights) == {"done": ALL}
        assert Path(file.name).exists()
    assert (output / name).read_bytes() == b"half"


def test_what_another_shard_is_writing_stays(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However alike the names are."""
    folder, output = tmp_path / "imgs", tmp_path / "imgs-denoised"
    names = [f"2026-04-12_survey_north-sector_camera-left_{n}.png" for n in (1, 2)]
    folder.mkdir()
    output.mkdir()
    picture(24, 20).save(folder / names[0])
    with atomic_file(output / names[1]) as file:
        assert run(capsys, folder, weights) == {"done": names[:1]}
        assert Path(file.name).exists()


@pytest.mark.parametrize("name", [None, "x" * 248 + ".png"], ids=["locked folder", "long name"])
def test_an_output_that_cannot_be_looked_for_fails_its_file_only(
    name: str | None,
    folder: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = name or "locked/9.png"
    (folder / bad).parent.mkdir(exist_ok=True)
    picture(24, 20).save(folder / bad)
    if name is None:
        (folder.with_name("imgs-denoised") / "locked").mkdir(parents=True)
        deny(monkeypatch, "stat", PermissionError, lambda path: "imgs-denoised/locked/" in path)
    found = run(capsys, folder, weights, "--suffix", "_clean", code=1)
    assert found == {"done": ALL, "failed": [bad]}


def test_images_that_fail_do_not_count_against_the_limit(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        (folder / f"{number}.png").write_bytes(b"")
    found = run(capsys, folder, weights, "--limit", "1", code=1)
    assert found == {"failed": ALL[:2], "done": ["2.png"]}
    found = run(capsys, folder, weights, "--limit", "1", code=1)
    assert found == {"failed": ALL[:2], "done": ["3.png"], "skipped": ["2.png"]}


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "-w", str(weights), "-d", "cpu", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 to denoise, 0 to skip" in out
    assert str(folder / "0.png") in out
    assert not folder.with_name("imgs-denoised").exists()
    run(capsys, folder, weights, "--limit", "1")
    before = time.time_ns()
    assert main([str(folder), "-w", str(weights), "-d", "cpu", "--dry-run"]) == 0
    assert "3 to denoise, 1 to skip" in capsys.readouterr().out
    output = folder.with_name("imgs-denoised")
    assert all(path.stat().st_mtime_ns < before for path in output.rglob("*"))


@pytest.mark.parametrize(
    "names",
    [
        ("A.png", "a.png"),
        ("Foto/b.png", "foto/b.png"),
        ("\u00e9.png", "e\u0301.png"),
        ("STRASSE.png", "stra\u00dfe.png"),
        ("\u00c4.png", "a\u0308.png"),
        ("x.PNG", "x.png"),
        ("A.png", "a.gif"),
        ("a.png", "A.png", "a-2.png"),
        ("\u0130.png", "i\u0307.png"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("more", [(), ("--shard",)], ids=["", "shards"])
def test_outputs_whose_names_would_meet_on_another_system_are_told_apart(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
    more: tuple[str, ...],
) -> None:
    folder, out = tmp_path / "imgs", tmp_path / "out"
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(24, 20, index).save(folder / name)
    made = []
    for shard in ("1/2", "2/2") if more else ("",):
        options = ["-o", str(out), *more, *([shard] if shard else [])]
        made += run(capsys, folder, weights, *options).get("done", [])
        assert "done" not in run(capsys, folder, weights, *options)
    assert sorted(made) == sorted(names)
    found = [path.relative_to(out).as_posix() for path in out.rglob("*.png") if path.is_file()]
    found += [path.relative_to(out).as_posix() for path in out.rglob("*.PNG")]
    folded = {unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
              for name in found}  # fmt: skip
    assert len(folded) == len(names)
    assert not (out / "imgs").exists()


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """Four pictures of one size and one time."""
    folder = tmp_path / "imgs"
    folder.mkdir()
    for index in range(4):
        picture(24, 20, index).save(folder / f"{index}.bmp")
        os.utime(folder / f"{index}.bmp", (1_000_000_000, 1_000_000_000))
    return folder


def test_files_of_one_size_and_time_that_swap_names_are_done_again(
    alike: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, alike, weights)
    (alike / "0.bmp").rename(alike / "x")
    (alike / "1.bmp").rename(alike / "0.bmp")
    (alike / "x").rename(alike / "1.bmp")
    assert run(capsys, alike, weights)["done"] == ["0.bmp", "1.bmp"]


@pytest.mark.parametrize("way", ["in place", "replaced", "linked"])
def test_other_bytes_under_the_old_size_and_time_are_done_again(
    alike: Path, weights: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    run(capsys, alike, weights)
    target = alike / "2.bmp"
    if way == "in place":
        with target.open("r+b") as file:
            file.write((alike / "3.bmp").read_bytes())
        os.utime(target, (1_000_000_000, 1_000_000_000))
    elif way == "replaced":
        shutil.copy2(alike / "3.bmp", alike / "x")
        (alike / "x").replace(target)
    else:
        target.unlink()
        target.hardlink_to(alike / "3.bmp")
    assert run(capsys, alike, weights)["done"] == ["2.bmp"]


@pytest.mark.parametrize("way", ["mode", "copied", "link", "older release"])
def test_a_new_stat_of_the_same_bytes_is_read_once_and_not_done_again(
    alike: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    run(capsys, alike, weights)
    target = alike / "2.bmp"
    if way == "mode":
        target.chmod(0o600)
    elif way == "copied":
        shutil.copy2(target, alike / "x")
        (alike / "x").replace(target)
    elif way == "link":
        (alike / "y").hardlink_to(target)
    else:
        manifest = alike.with_name("imgs-denoised") / ".denoise-batch" / "manifest.jsonl"
        lines = [json.loads(line) for line in manifest.read_text().splitlines()]
        for line in lines:
            for stamp in ("output_stamp", "source_stamp"):
                del line[stamp]["ctime_ns"], line[stamp]["inode"]
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read: list[str] = []

    def counted(path: Path, *more: Any) -> str:
        read.append(path.name)
        return sha256_of(path, *more)

    monkeypatch.setattr("denoise_batch.streaming.session.sha256_of", counted)
    assert "done" not in run(capsys, alike, weights, "--dry-run")
    for _ in range(3):
        read.clear()
        assert set(run(capsys, alike, weights)) == {"skipped"}
    assert read == []


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def with_zeros(data: bytes) -> bytes:
    return halved(data) + bytes(len(data) - len(data) // 2)


DAMAGE = {
    "half": halved,
    "some bytes short": lambda data: data[:-30],
    "a byte short": lambda data: data[:-1],
    "nothing": lambda data: b"",
    "few bytes": lambda data: data[:9],
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": with_zeros,
    "flipped": flipped,
}


# What is still a picture may be somebody's work: it is told, and kept.
READABLE = {
    "jpg": ["flipped"],
    "tif": ["flipped"],
    "webp": ["flipped", "zeros at the end"],
    "bmp": ["flipped", "zeros at the end"],
}


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (suffix, damage)
        for suffix in ("png", "jpg", "tif", "webp", "bmp")
        for damage in DAMAGE
        if damage not in READABLE.get(suffix, ())
    ],
)
@pytest.mark.parametrize("is_kept", [True, False], ids=["old time", "new time"])
def test_a_damaged_output_is_made_again(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    damage: str,
    is_kept: bool,
) -> None:
    folder, output = tmp_path / "imgs", tmp_path / "imgs-denoised"
    folder.mkdir()
    for index in range(2):
        picture(60, 50, index).save(folder / f"{index}.{suffix}")
    run(capsys, folder, weights)
    target = output / f"0.{suffix}"
    data, status = target.read_bytes(), target.stat()
    target.write_bytes(DAMAGE[damage](data))
    if is_kept:
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(capsys, folder, weights, "--dry-run") == {}
    found = run(capsys, folder, weights)
    assert found == {"done": [f"0.{suffix}"], "skipped": [f"1.{suffix}"]}
    assert target.read_bytes() == data
    assert run(capsys, folder, weights) == {"skipped": [f"0.{suffix}", f"1.{suffix}"]}


def another_picture(data: bytes) -> bytes:
    file = BytesIO()
    picture(60, 50, 9).save(file, "PNG")
    return file.getvalue()


def packed_better(data: bytes) -> bytes:
    file = BytesIO()
    with Image.open(BytesIO(data)) as image:
        image.save(file, "PNG", compress_level=9)
    return file.getvalue()


EDITS = {
    "text": lambda data: b"edited",
    "another picture": another_picture,
    "packed better": packed_better,
    "more": lambda data: data + b"more",
    "another format": lambda data: b"\0\0\0\x18ftypheic" + data[:200],
    "encrypted": lambda data: bytes(byte ^ 0x5A for byte in data),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("more", [(), ("--strength", "0.5"), ("changed input",)], ids=str)
def test_an_output_that_somebody_changed_is_kept_and_told(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    edit: str,
    more: tuple[str, ...],
) -> None:
    folder, target = tmp_path / "imgs", tmp_path / "imgs-denoised" / "0.png"
    folder.mkdir()
    picture(60, 50, 0).save(folder / "0.png", compress_level=1)
    run(capsys, folder, weights)
    edited = EDITS[edit](target.read_bytes())
    target.write_bytes(edited)
    if more == ("changed input",):
        picture(60, 50, 5).save(folder / "0.png")
        more = ()
    command = [str(folder), "-w", str(weights), "-d", "cpu", *more]
    assert main([*command, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"would skip {folder}/0.png (changed since it was written" in said
    for _ in range(2):
        assert main(command) == 0
        assert "0.png: its output was changed after it was written" in capsys.readouterr().out
    assert main([*command, "--log", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[1]["reason"] == "changed since it was written"
    assert target.read_bytes() == edited
    assert run(capsys, folder, weights, *more, "--overwrite") == {"done": ["0.png"]}
    assert run(capsys, folder, weights, *more) == {"skipped": ["0.png"]}
    assert target.read_bytes() != edited


@pytest.mark.parametrize("way", ["swapped", "in place", "replaced", "linked"])
def test_other_bytes_under_an_output_s_size_and_time_are_noticed(
    alike: Path, weights: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    run(capsys, alike, weights)
    out = alike.with_name("imgs-denoised")
    a, b = out / "0.bmp", out / "1.bmp"
    status = a.stat()
    assert (status.st_size, status.st_mtime_ns) == (b.stat().st_size, b.stat().st_mtime_ns)
    changed = ["0.bmp"]
    if way == "swapped":
        a.rename(out / "x")
        b.rename(a)
        (out / "x").rename(b)
        changed = ["0.bmp", "1.bmp"]
    elif way == "in place":
        with a.open("r+b") as file:
            file.write(b.read_bytes())
        os.utime(a, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif way == "replaced":
        shutil.copy2(b, out / "x")
        (out / "x").replace(a)
    else:
        a.unlink()
        a.hardlink_to(b)
    command = [str(alike), "-w", str(weights), "-d", "cpu", "--log", "json"]
    assert main(command) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [e["name"] for e in events if e.get("reason") == "changed since it was written"]
    assert sorted(told) == changed


@pytest.mark.parametrize("way", ["touched", "mode", "copied", "tree"])
def test_a_new_stat_of_an_output_s_bytes_is_read_once(
    alike: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    run(capsys, alike, weights)
    out = alike.with_name("imgs-denoised")
    target = out / "2.bmp"
    if way == "touched":
        os.utime(target)
    elif way == "mode":
        target.chmod(0o600)
    elif way == "copied":
        shutil.copy2(target, out / "x")
        (out / "x").replace(target)
    else:
        shutil.copytree(out, out.with_name("y"))
        shutil.rmtree(out)
        out.with_name("y").rename(out)
    read: list[str] = []

    def counted(path: Path, *more: Any) -> str:
        read.append(path.name)
        return sha256_of(path, *more)

    monkeypatch.setattr("denoise_batch.streaming.manifest.sha256_of", counted)
    assert "done" not in run(capsys, alike, weights)
    assert len(read) == (4 if way == "tree" else 1)
    read.clear()
    for _ in range(2):
        assert set(run(capsys, alike, weights)) == {"skipped"}
    assert read == []


def test_lines_of_older_releases_are_understood(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They say less of the outputs, and stand for them as before."""
    run(capsys, folder, weights)
    manifest = folder.with_name("imgs-denoised") / ".denoise-batch" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        del line["outline"]
        line["output_stamp"] |= {"ctime_ns": 0, "inode": 0}
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(capsys, folder, weights) == {"skipped": ALL}
    target = folder.with_name("imgs-denoised") / "0.png"
    target.write_bytes(halved(target.read_bytes()))  # which nothing proves
    (folder.with_name("imgs-denoised") / "1.png").write_bytes(b"")
    assert run(capsys, folder, weights) == {"done": ["1.png"], "skipped": ["0.png", *ALL[2:]]}
