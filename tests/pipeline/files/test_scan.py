import os
from pathlib import Path
from typing import Any

import pytest
from denials import deny

from denoise_batch.files.scan import FileStat, Job, OutputNaming, scan
from denoise_batch.kernels.errors import NoImagesError, OptionError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative paths in these tests stand in a fresh folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def plan(jobs: list[Job]) -> dict[str, str]:
    """Source → output, as text."""
    outputs = [job.output for job in jobs]
    assert len(set(outputs)) == len(outputs)
    assert not {job.source.resolve() for job in jobs} & {path.resolve() for path in outputs}
    return {job.source.as_posix(): job.output.as_posix() for job in jobs}


@pytest.mark.parametrize("year", [1600, 2400, 2446])
def test_a_time_beyond_64_bits_is_the_nearest_one(year: int) -> None:
    """Of nanoseconds; file systems have others, which a camera without a clock may give."""
    make("a.png")
    time_ns = round((year - 1970) * 365.2425 * 86400) * 10**9
    status = os.stat_result((0, 7, 0, 1, 0, 0, 3, 0, 0, 0, 0, 0, 0, time_ns, time_ns, time_ns))
    assert abs(FileStat.from_status(status).mtime_ns) in (1 << 63, (1 << 63) - 1)


# Default outputs


def test_a_folder_goes_beside_itself_and_mirrors_its_tree() -> None:
    make("imgs/a.png", "imgs/sub/deep/b.JPG")
    jobs = scan(["imgs"], None)
    assert plan(jobs) == {
        "imgs/a.png": "imgs-denoised/a.png",
        "imgs/sub/deep/b.JPG": "imgs-denoised/sub/deep/b.JPG",
    }
    assert [job.name for job in jobs] == ["a.png", "sub/deep/b.JPG"]


def test_a_file_goes_beside_itself() -> None:
    make("imgs/a.png")
    jobs = scan([Path("imgs/a.png")], None)
    assert plan(jobs) == {"imgs/a.png": "imgs/a-denoised.png"}
    assert jobs[0].name == "a.png"


def test_glob_matches_go_beside_themselves() -> None:
    make("imgs/a.png", "imgs/b.jpg", "imgs/c.txt", "imgs/sub/d.png")
    assert plan(scan(["imgs/*.*"], None)) == {
        "imgs/a.png": "imgs/a-denoised.png",
        "imgs/b.jpg": "imgs/b-denoised.jpg",
    }
    deep = scan(["imgs/**/*.png"], None)
    assert [job.name for job in deep] == ["a.png", "sub/d.png"]


def test_an_absolute_glob_is_taken(here: Path) -> None:
    make("imgs/a.png")
    assert [job.name for job in scan([f"{here}/im*/?.png"], None)] == ["imgs/a.png"]


def test_a_folder_matched_by_a_glob_is_read_as_a_folder() -> None:
    make("day1/a.png", "day2/a.png")
    assert plan(scan(["day*"], None)) == {
        "day1/a.png": "day1-denoised/a.png",
        "day2/a.png": "day2-denoised/a.png",
    }
    assert plan(scan(["day*"], Path("out"))) == {
        "day1/a.png": "out/day1/a.png",
        "day2/a.png": "out/day2/a.png",
    }


def test_an_existing_name_with_glob_characters_is_no_pattern() -> None:
    make("a[1].png", "a1.png", "what?/b.png")
    assert plan(scan(["a[1].png", "what?"], None)) == {
        "a[1].png": "a[1]-denoised.png",
        "what?/b.png": "what?-denoised/b.png",
    }


def test_the_current_folder_goes_beside_itself(here: Path) -> None:
    make("a.png")
    (job,) = scan(["."], None)
    assert job.output == here.with_name("here-denoised") / "a.png"
    assert job.name == "a.png"


def test_the_root_folder_has_nothing_beside_it() -> None:
    with pytest.raises(OptionError, match="give --output"):
        scan(["/"], None)


# Given outputs


def test_a_folder_is_mirrored_in_the_output() -> None:
    make("imgs/a.png", "imgs/sub/b.webp")
    assert plan(scan(["imgs"], Path("out"))) == {
        "imgs/a.png": "out/a.png",
        "imgs/sub/b.webp": "out/sub/b.webp",
    }


def test_one_file_with_an_image_suffix_as_output_is_written_there() -> None:
    make("imgs/a.png")
    assert plan(scan(["imgs/a.png"], Path("out/b.tif"))) == {"imgs/a.png": "out/b.tif"}


def test_one_file_goes_into_an_existing_folder_whatever_its_suffix() -> None:
    make("imgs/a.png")
    Path("out.png").mkdir()
    assert plan(scan(["imgs/a.png"], Path("out.png"))) == {"imgs/a.png": "out.png/a.png"}
    assert plan(scan(["imgs/a.png"], Path("new"))) == {"imgs/a.png": "new/a.png"}


def test_an_output_file_is_refused_for_several_inputs() -> None:
    make("imgs/a.png", "imgs/b.png", "taken")
    for inputs in (["imgs"], ["imgs/a.png", "imgs/b.png"], ["imgs/*.png"]):
        for output in (Path("out.png"), Path("taken")):
            with pytest.raises(OptionError, match="is a file; name a folder"):
                scan(inputs, output)


def test_an_output_file_of_a_format_that_cannot_be_written_is_refused() -> None:
    make("a.png")
    with pytest.raises(OptionError, match=r"out\.gif: \.gif cannot be written"):
        scan(["a.png"], Path("out.gif"))


def test_several_inputs_are_merged_in_the_output() -> None:
    make("one/a.png", "two/b.png", "c.png", "three/d.png")
    assert plan(scan(["one", "two", "c.png", "thr*/*.png"], Path("out"))) == {
        "one/a.png": "out/a.png",
        "two/b.png": "out/b.png",
        "c.png": "out/c.png",
        "three/d.png": "out/three/d.png",
    }


# Suffixes and collisions


def test_formats_that_cannot_be_written_become_png() -> None:
    make("imgs/a.gif", "imgs/b.PCX")
    assert plan(scan(["imgs"], None)) == {
        "imgs/a.gif": "imgs-denoised/a.png",
        "imgs/b.PCX": "imgs-denoised/b.png",
    }


def test_equal_stems_with_other_suffixes_do_not_collide() -> None:
    make("imgs/a.png", "imgs/a.jpg", "imgs/a.jpeg")
    assert set(plan(scan(["imgs"], None)).values()) == {
        "imgs-denoised/a.png",
        "imgs-denoised/a.jpg",
        "imgs-denoised/a.jpeg",
    }


def test_a_changed_suffix_is_kept_in_the_name_where_it_collides() -> None:
    make("imgs/a.gif", "imgs/a.pcx", "imgs/a.png", "imgs/b.gif")
    assert plan(scan(["imgs"], None)) == {
        "imgs/a.gif": "imgs-denoised/a.gif.png",
        "imgs/a.pcx": "imgs-denoised/a.pcx.png",
        "imgs/a.png": "imgs-denoised/a.png",
        "imgs/b.gif": "imgs-denoised/b.png",
    }
    assert plan(scan(["imgs/a.gif", "imgs/a.png"], None)) == {
        "imgs/a.gif": "imgs/a.gif-denoised.png",
        "imgs/a.png": "imgs/a-denoised.png",
    }


def test_equal_names_of_two_inputs_go_under_the_inputs_names() -> None:
    make("one/x.png", "one/y.png", "two/x.png", "two/sub/x.png")
    assert plan(scan(["one", "two"], Path("out"))) == {
        "one/x.png": "out/one/x.png",
        "one/y.png": "out/y.png",
        "two/sub/x.png": "out/sub/x.png",
        "two/x.png": "out/two/x.png",
    }
    assert plan(scan(["one/x.png", "two/x.png"], Path("out"))) == {
        "one/x.png": "out/one/x.png",
        "two/x.png": "out/two/x.png",
    }


def test_inputs_of_one_name_are_told_apart_by_a_number() -> None:
    make("mon/imgs/x.png", "tue/imgs/x.png", "wed/imgs/x.png")
    assert plan(scan(["mon/imgs", "tue/imgs", "wed/imgs"], Path("out"))) == {
        "mon/imgs/x.png": "out/imgs/x.png",
        "tue/imgs/x.png": "out/imgs/x-2.png",
        "wed/imgs/x.png": "out/imgs/x-3.png",
    }


def test_a_resolved_collision_makes_no_new_one() -> None:
    make("imgs/a.gif", "imgs/a.png", "imgs/a.gif.png", "imgs/a.gif-2.png")
    outputs = plan(scan(["imgs"], Path("out")))
    assert len(set(outputs.values())) == 4
    assert outputs["imgs/a.png"] == "out/a.png"


def test_an_output_is_never_the_folder_of_another(here: Path) -> None:
    make("imgs/x.gif", "imgs/x.png/b.png", "imgs/A.PNG", "imgs/a.png/deep/c.png")
    make("more/b.png", "imgs/b.png/d.png")
    assert plan(scan(["imgs", "more"], Path("out"))) == {
        "imgs/A.PNG": "out/A-2.PNG",
        "imgs/a.png/deep/c.png": "out/a.png/deep/c.png",
        "imgs/b.png/d.png": "out/b.png/d.png",
        "imgs/x.gif": "out/x.gif.png",
        "imgs/x.png/b.png": "out/x.png/b.png",
        "more/b.png": "out/b-2.png",
    }


def test_the_plan_does_not_depend_on_the_order_of_the_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make("imgs/a.gif", "imgs/a.png", "imgs/b.png", "imgs/sub/c.png", "imgs/sub/c.gif")
    before = scan(["imgs"], None)
    listed = os.walk

    def backwards(*arguments: Any, **options: Any) -> Any:
        for parent, folders, files in listed(*arguments, **options):
            yield parent, folders, files[::-1]
            folders.reverse()

    monkeypatch.setattr(os, "walk", backwards)
    assert scan(["imgs"], None) == before


# What is taken and what is passed over


def test_only_image_suffixes_are_taken_from_folders_in_any_case() -> None:
    make("imgs/a.PNG", "imgs/b.Tiff", "imgs/c.txt", "imgs/d", "imgs/e.png.bak", "imgs/f.jp2")
    assert [job.name for job in scan(["imgs"], None)] == ["a.PNG", "b.Tiff", "f.jp2"]


def test_an_explicit_file_is_taken_whatever_its_suffix() -> None:
    make("photo", "scan.dat", ".hidden.png")
    assert plan(scan(["photo", "scan.dat", ".hidden.png"], None)) == {
        "photo": "photo-denoised.png",
        "scan.dat": "scan-denoised.png",
        ".hidden.png": ".hidden-denoised.png",
    }


def test_sub_folders_are_left_out_on_request() -> None:
    make("imgs/a.png", "imgs/sub/b.png")
    assert [job.name for job in scan(["imgs"], None, recursive=False)] == ["a.png"]


def test_hidden_files_and_folders_are_passed_over() -> None:
    make("imgs/.a.png", "imgs/.thumbs/b.png", "imgs/c.png", "imgs/.c.png.1a2b.tmp")
    assert [job.name for job in scan(["imgs"], None)] == ["c.png"]
    assert [job.name for job in scan(["imgs/**/*"], Path("out"))] == ["c.png"]


def test_a_hidden_input_is_read() -> None:
    make(".cache/imgs/a.png")
    assert [job.name for job in scan([".cache/imgs"], Path("out"))] == ["a.png"]


def test_an_output_folder_inside_the_input_is_never_read() -> None:
    make("imgs/a.png", "imgs/out/a.png", "imgs/out/sub/b.png", "imgs/other/c.png")
    expected = {"imgs/a.png": "imgs/out/a.png", "imgs/other/c.png": "imgs/out/other/c.png"}
    assert plan(scan(["imgs"], Path("imgs/out"))) == expected
    assert plan(scan(["imgs/**/*.png"], Path("imgs/out"))) == expected


def test_an_input_inside_the_output_folder_is_read() -> None:
    make("all/imgs/a.png", "all/imgs/sub/b.png")
    expected = {"all/imgs/a.png": "all/a.png", "all/imgs/sub/b.png": "all/sub/b.png"}
    assert plan(scan(["all/imgs"], Path("all"))) == expected
    assert plan(scan(["all/imgs/**/*.png"], Path("all"))) == expected


def test_results_of_earlier_runs_are_passed_over() -> None:
    make("w/a.png", "w/a-denoised.png", "w/b.gif", "w/b-denoised.png", "w/c.gif")
    make("w/c.gif-denoised.png", "w/imgs/d.png", "w/imgs-denoised/d.png")
    names = ["a.png", "b.gif", "c.gif", "imgs/d.png"]
    assert [job.name for job in scan(["w"], None)] == names
    assert [job.name for job in scan(["w"], Path("out"))] == names
    assert [job.name for job in scan(["w/*.*"], None)] == names[:3]


def test_a_name_that_only_looks_like_a_result_is_taken() -> None:
    make("w/a-denoised.png", "w/imgs-denoised/b.png", "w/c-denoised.jpg", "w/c.png")
    assert [job.name for job in scan(["w"], None)] == [
        "a-denoised.png",
        "c-denoised.jpg",
        "c.png",
        "imgs-denoised/b.png",
    ]


@pytest.mark.parametrize("text", ["w", "w/*", "w*"])
def test_names_that_are_nothing_but_the_mark_are_taken(text: str) -> None:
    make("w/-denoised/a.png", "w/-denoised.png", "w/b/-denoised/c.png")
    outputs = [job.output.relative_to("out") for job in scan([text], Path("out"))]
    assert sorted(path.name for path in outputs) == ["-denoised.png", "a.png", "c.png"]


def test_a_suffix_is_looked_for_only_where_outputs_stand_beside_their_inputs() -> None:
    make("w/a.png", "w/a2.png", "w/b.png", "w/b-denoised.png")
    naming, both, all_three = OutputNaming("2"), ["a.png", "b.png"], ["a.png", "a2.png", "b.png"]

    def names(text: str, output: str | None) -> list[str]:
        jobs = scan([text], None if output is None else Path(output), naming=naming)
        return sorted(Path(job.name).name for job in jobs)

    assert names("w/*", None) == names("w/*", "w") == names("w/*", "w/../w") == both
    assert names("w", None) == names("w", "out") == names("w/*", "out") == all_three
    assert names("w*", None) == names("w*", "out") == all_three


def test_a_second_run_on_files_spelled_out_by_the_shell_repeats_the_first() -> None:
    make("a.png", "b.png")
    first = plan(scan(["a.png", "b.png"], None))
    make("a-denoised.png", "b-denoised.png")
    assert plan(scan(["a-denoised.png", "a.png", "b-denoised.png", "b.png"], None)) == first


def test_a_result_named_alone_is_denoised_again() -> None:
    make("imgs/a.png", "imgs-denoised/a.png", "a-denoised.png")
    assert plan(scan(["imgs-denoised", "a-denoised.png"], None)) == {
        "imgs-denoised/a.png": "imgs-denoised-denoised/a.png",
        "a-denoised.png": "a-denoised-denoised.png",
    }


def test_linked_files_are_read_and_linked_folders_not_entered() -> None:
    make("elsewhere/x.png", "imgs/a.png")
    Path("imgs/link.png").symlink_to("../elsewhere/x.png")
    Path("imgs/folder").symlink_to("../elsewhere")
    Path("imgs/loop").symlink_to(".")
    Path("imgs/broken.png").symlink_to("nowhere.png")
    Path("imgs/itself.png").symlink_to("itself.png")
    for output in (None, Path("out"), Path("imgs/out")):
        names = [job.name for job in scan(["imgs"], output)]
        assert names == ["a.png", "broken.png", "itself.png", "link.png"]


def test_a_linked_folder_as_input_is_entered() -> None:
    make("elsewhere/x.png")
    Path("imgs").symlink_to("elsewhere")
    assert plan(scan(["imgs"], None)) == {"imgs/x.png": "imgs-denoised/x.png"}


def test_a_file_named_twice_is_done_once() -> None:
    make("imgs/a.png", "imgs/b.png")
    jobs = scan(["imgs/b.png", "imgs", "./imgs/../imgs/a.png", "imgs/*.png"], Path("out"))
    assert [job.name for job in jobs] == ["b.png", "a.png"]


def test_names_are_in_natural_order() -> None:
    make(*(f"imgs/{name}.png" for name in ("a10", "a2", "B1", "a1", "10", "9", "a2b3", "a02")))
    names = [Path(job.name).stem for job in scan(["imgs"], None)]
    assert names == ["9", "10", "a1", "a02", "a2", "a2b3", "a10", "B1"]


def test_unicode_blanks_and_long_names_are_fine() -> None:
    names = ["Grüße 写真.png", "n" * 250 + ".png", "two  blanks\t.png"]
    make(*(f"imgs/{name}" for name in names))
    assert {job.name for job in scan(["imgs"], None)} == set(names)


# Refusals


@pytest.mark.parametrize("text", ["missing", "missing/a.png", "missing/*.png", "x" * 300])
def test_a_missing_input_is_named(text: str) -> None:
    make("imgs/a.png")
    with pytest.raises(OptionError) as error:
        scan(["imgs", text], None)
    assert str(error.value).startswith(f"{text}: ")
    assert error.value.exit_code == 2


def test_a_missing_input_is_named_before_its_output() -> None:
    with pytest.raises(OptionError, match=r"typo\.png: no such file"):
        scan(["typo.png"], Path("out.png"))


def test_an_impossible_pattern_is_refused() -> None:
    make("imgs/a.png")
    with pytest.raises(OptionError, match="pattern"):
        scan(["imgs/**.png"], None)


@pytest.mark.parametrize("inputs", [[], ["imgs"], ["imgs/*.png"], ["imgs", "more"]])
def test_nothing_to_do_says_what_was_looked_for(inputs: list[str]) -> None:
    make("imgs/readme.txt", "more/.hidden.png")
    with pytest.raises(NoImagesError, match=r"no images found; .*\.jpg .*\.png") as error:
        scan(inputs, None)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["imgs"], "imgs"),
        (["imgs"], "imgs/../imgs"),
        (["imgs"], "linked"),
        (["imgs/*.png"], "imgs"),
        (["imgs/a.png"], "imgs"),
        (["imgs/a.png"], "imgs/a.png"),
        (["imgs/a.png"], "linked/a.png"),
        (["other", "imgs"], "imgs"),
        (["imgs/to_other.png"], "other/b.png"),
    ],
)
def test_an_output_that_would_overwrite_an_input_is_refused(inputs: list[str], output: str) -> None:
    make("imgs/a.png", "other/b.png")
    Path("linked").symlink_to("imgs")
    Path("imgs/to_other.png").symlink_to("../other/b.png")
    with pytest.raises(OptionError, match="would overwrite the input"):
        scan(inputs, Path(output))


def test_an_output_below_a_locked_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make("imgs/a.png")
    deny(monkeypatch, "stat", PermissionError, lambda path: "locked" in path)
    with pytest.raises(OptionError, match="--output locked/out: Permission denied"):
        scan(["imgs"], Path("locked/out"))


def test_a_folder_that_goes_while_it_is_listed_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make("imgs/a.png", "imgs/gone/b.png")
    deny(monkeypatch, "scandir", FileNotFoundError, lambda path: path.endswith("gone"))
    assert [job.name for job in scan(["imgs"], None)] == ["a.png"]


def test_one_place_spelled_two_ways_is_one_root(here: Path) -> None:
    make("a.png", "b.png")
    jobs = scan(["a.png", str(here / "b.png")], None)
    assert len({job.root for job in jobs}) == 1
    assert [job.output.relative_to(job.root).name for job in jobs] == [
        "a-denoised.png", "b-denoised.png"
    ]  # fmt: skip


@pytest.mark.parametrize("naming", [OutputNaming(extension=".png"), OutputNaming(suffix="_clean")])
def test_an_exact_output_and_a_rule_for_names_contradict(naming: OutputNaming) -> None:
    make("a.png")
    with pytest.raises(OptionError, match=r"--output y\.jpg: already names the file"):
        scan(["a.png"], Path("y.jpg"), naming=naming)
    assert scan(["a.png"], Path("y.jpg"), naming=OutputNaming(extension=".jpg"))


def test_a_folder_that_cannot_be_listed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    make("imgs/a.png", "imgs/locked/b.png")
    deny(monkeypatch, "scandir", PermissionError, lambda path: path.endswith("locked"))
    with pytest.raises(OptionError, match="imgs/locked: cannot be listed: Permission denied"):
        scan(["imgs/locked"], None)
    jobs = scan(["imgs"], None)
    assert [(job.name, "cannot be listed" in job.fault) for job in jobs] == [
        ("a.png", False),
        ("locked", True),
    ]


def test_files_of_a_folder_that_cannot_be_entered_are_left_to_their_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its names are listed, and no more is to be had of them."""
    make("imgs/a.png", "imgs/locked/b.png")
    deny(monkeypatch, "stat", PermissionError, lambda path: "/locked/" in path)
    for text in ("imgs", "imgs*", "imgs/*"):
        names = [job.source.as_posix() for job in scan([text], Path("out"))]
        assert names == ["imgs/a.png", "imgs/locked/b.png"]
