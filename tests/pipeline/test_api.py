"""The Python interface: every kind of image goes in and comes out as it was."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image

import denoise_batch
from denoise_batch import Denoiser, Progress, denoise, denoise_folder, load
from denoise_batch.cli.batch import main
from denoise_batch.kernels import ImageError, NoImagesError, OptionError, ShapeError, WeightsError
from denoise_batch.streaming.result import Plan, Result


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser("tconv", "cpu")


def noisy(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def expected(chw: np.ndarray) -> torch.Tensor:
    """What the network itself makes of an image in [0, 1]."""
    return load("tconv")(torch.from_numpy(chw)[None])[0]


def test_the_version_needs_no_torch() -> None:
    code = (
        "import sys, denoise_batch; print(denoise_batch.__version__); "
        "assert 'torch' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == denoise_batch.__version__


def test_every_public_name_is_there() -> None:
    assert {name for name in denoise_batch.__all__ if getattr(denoise_batch, name)}
    assert set(dir(denoise_batch)) == set(denoise_batch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'denoyse'"):
        _ = denoise_batch.denoyse  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(21, 34), (21, 34, 1), (21, 34, 3)])
def test_an_array_comes_back_as_an_array(
    dtype: str, shape: tuple[int, ...], denoiser: Denoiser
) -> None:
    values = noisy(*shape)
    top = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    array = (values * top).astype(dtype)
    before = array.copy()
    result = denoiser(array)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert np.array_equal(array, before)
    unit = (array.astype(np.float64) / top).astype(np.float32).reshape(21, 34, -1)
    wanted = expected(unit.transpose(2, 0, 1)).permute(1, 2, 0).reshape(shape).numpy()
    tolerance = {"uint8": 0.51 / 255, "float16": 1e-3}.get(dtype, 1e-5 if top == 1 else 1e-4)
    np.testing.assert_allclose(result.astype(np.float64) / top, wanted, atol=tolerance)


def test_strides_and_byte_order_of_an_array_do_not_matter(denoiser: Denoiser) -> None:
    array = (noisy(20, 24, 3) * 65535).astype(np.uint16)
    wanted = denoiser(array)
    swapped = denoiser(array.astype(">u2"))
    assert swapped.dtype == np.dtype(">u2")
    assert np.array_equal(swapped, wanted)
    assert np.array_equal(denoiser(array[:, ::-1][:, ::-1]), wanted)
    read_only = array.copy()
    read_only.flags.writeable = False
    assert np.array_equal(denoiser(read_only), wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(21, 34), (1, 21, 34), (3, 21, 34), (4, 3, 21, 34)])
def test_a_tensor_comes_back_as_a_tensor(
    dtype: torch.dtype, shape: tuple[int, ...], denoiser: Denoiser
) -> None:
    values = torch.from_numpy(noisy(*shape))
    top = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    tensor = (values * top).to(torch.int32).to(dtype) if top > 1 else values.to(dtype)
    result = denoiser(tensor)
    assert (result.dtype, result.shape) == (dtype, tensor.shape)
    unit = (tensor.double() / top).float().reshape(-1, *shape[-3:])
    unit = unit.reshape(-1, shape[-3] if len(shape) > 2 else 1, 21, 34)
    wanted = load("tconv")(unit).reshape(shape)
    tolerance = {torch.uint8: 0.51 / 255, torch.bfloat16: 4e-3}.get(dtype, 1e-4)
    torch.testing.assert_close((result.double() / top).float(), wanted, atol=tolerance, rtol=0)


def test_a_subclass_of_array_is_an_array(denoiser: Denoiser) -> None:
    class Array(np.ndarray):
        """As imageio returns them."""

    array = (noisy(12, 14, 3) * 255).astype(np.uint8)
    assert np.array_equal(denoiser(array.view(Array)), denoiser(array))


def test_at_strength_0_every_bit_is_kept() -> None:
    array = np.random.default_rng(0).random((9, 11, 3))
    assert np.array_equal(denoise(array, weights="tconv", device="cpu", strength=0), array)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), torch.device("cpu", 0)])
def test_a_device_may_be_torchs(device: str | torch.device, tmp_path: Path) -> None:
    picture(16, 12).save(tmp_path / "a.png")
    assert Denoiser("tconv", device).device == torch.device("cpu")
    summary = denoise_folder(tmp_path, tmp_path / "out", weights="tconv", device=device)
    assert summary.exit_code == 0


def test_16_bit_colour_in_a_file_is_refused_by_its_name(tmp_path: Path, denoiser: Denoiser) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode((noisy(8, 9, 3) * 65535).astype(np.uint16)))
    with pytest.raises(ImageError, match=r"a\.png: 16-bit colour"):
        denoiser(path)


def test_an_empty_name_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(16, 12).save(tmp_path / "a.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(OptionError, match="output is empty"):
        denoise_folder(tmp_path / "a.png", "", weights="tconv", device="cpu")
    with pytest.raises(OptionError, match="reference is empty"):
        denoise_folder(tmp_path / "a.png", weights="tconv", device="cpu", reference="")
    assert list(Path().iterdir()) == []


def test_alpha_is_returned_as_it_is(denoiser: Denoiser) -> None:
    rgba = (noisy(16, 20, 4) * 255).astype(np.uint8).clip(1)  # below alpha 0 there is no colour
    result = denoiser(rgba)
    assert np.array_equal(result[..., 3], rgba[..., 3])
    assert np.array_equal(result[..., :3], denoiser(rgba[..., :3]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16", "F"])
def test_a_pil_image_comes_back_in_its_mode(mode: str, denoiser: Denoiser) -> None:
    if mode == "I;16":
        image = Image.fromarray((noisy(20, 30) * 65535).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray(noisy(20, 30))
    else:
        image = picture(30, 20).convert(mode)
    image.info["dpi"] = (300, 300)
    result = denoiser(image)
    assert (result.mode, result.size) == (mode, image.size)
    assert result.info["dpi"] == (300, 300)


def test_the_three_kinds_agree(denoiser: Denoiser) -> None:
    image = picture(40, 30)
    array = np.array(image)
    from_array = denoiser(array)
    assert np.array_equal(np.array(denoiser(image)), from_array)
    chw = denoiser(torch.from_numpy(array).permute(2, 0, 1))
    assert np.array_equal(chw.permute(1, 2, 0).numpy(), from_array)


def test_a_path_gives_an_upright_image_and_writes_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned right
    path = tmp_path / "a.jpg"
    picture(40, 30).save(path, exif=exif)
    result = denoise(path, weights="tconv", device="cpu")
    assert result.size == (30, 40)
    assert denoise(str(path), weights="tconv", device="cpu").tobytes() == result.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]


def test_a_path_gives_what_the_command_writes(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    picture(50, 40).save(tmp_path / "imgs" / "a.png")
    out = tmp_path / "out"
    assert main([str(tmp_path / "imgs"), "-o", str(out), "-w", "tconv", "-d", "cpu"]) == 0
    with Image.open(out / "a.png") as written:
        result = denoise(tmp_path / "imgs" / "a.png", weights="tconv", device="cpu")
        assert result.tobytes() == written.tobytes()


def test_strength_tiles_and_tta_are_those_of_the_command() -> None:
    array = (noisy(64, 80, 3) * 255).astype(np.uint8)
    whole = denoise(array, weights="tconv", device="cpu")
    assert np.array_equal(denoise(array, weights="tconv", device="cpu", strength=0), array)
    tiled = denoise(array, weights="tconv", device="cpu", tile=16)
    assert np.abs(tiled.astype(int) - whole).max() <= 1
    assert not np.array_equal(denoise(array, weights="tconv", device="cpu", tta=True), whole)


def test_map_denoises_one_after_the_other(denoiser: Denoiser) -> None:
    arrays = [noisy(12, 13 + i, 3, seed=i) for i in range(4)]
    asked: list[int] = []

    def images() -> object:
        for number, array in enumerate(arrays):
            asked.append(number)
            yield array

    results = denoiser.map(images())  # type: ignore[arg-type]
    assert asked == []
    for array, result in zip(arrays, results, strict=True):
        assert np.array_equal(result, denoiser(array))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 5), np.uint8), ShapeError, "5 channels"),
        (np.zeros((4, 0, 3), np.uint8), ShapeError, "at least one pixel"),
        (np.zeros((2, 3, 4, 4), np.uint8), ShapeError, r"give \(H, W\) or \(H, W, C\)"),
        (np.zeros((4, 4), np.int64), ShapeError, "uint8, uint16, or float"),
        (np.full((4, 4), np.nan, np.float32), ImageError, "NaN"),
        (np.full((4, 4), 200.0, np.float32), ImageError, r"expected \[0, 1\]"),
        (torch.zeros(5), ShapeError, r"\(C, H, W\)"),
        (torch.zeros(0, 3, 8, 8), ShapeError, "0 images of 8x8"),
        (Image.new("RGB", (0, 5)), ShapeError, "0x5: has no pixels"),
        (Image.new("I", (4, 4), 100_000), ImageError, "values from 100000 to 100000"),
        (Image.new("I", (4, 4), -1), ImageError, "values from -1"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), ShapeError, "uint8"),
        ([[1, 2], [3, 4]], ShapeError, "a NumPy array or a torch tensor, not list"),
        ("not-there.png", ImageError, "not-there.png"),
    ],
)
def test_what_cannot_be_denoised_is_a_clear_error(
    image: object, error: type[Exception], message: str, denoiser: Denoiser
) -> None:
    with pytest.raises(error, match=message):
        denoiser(image)


def test_wrong_options_are_clear_errors() -> None:
    with pytest.raises(OptionError, match="strength"):
        Denoiser("tconv", strength=2)
    with pytest.raises(OptionError, match="tile"):
        Denoiser("tconv", tile=-3)
    with pytest.raises(OptionError, match="precision bf16 on a processor"):
        Denoiser("tconv", "cpu", precision="bf16")
    with pytest.raises(WeightsError, match="nothing-like-it"):
        load("nothing-like-it")


def test_a_folder_is_denoised_as_the_command_does(tmp_path: Path) -> None:
    imgs = tmp_path / "imgs"
    imgs.mkdir()
    for index in range(3):
        picture(30 + index, 20, index).save(imgs / f"{index}.png")
    (imgs / "broken.png").write_bytes(b"no picture")
    seen: list[str] = []

    class Names(Progress[Plan, Result]):
        def on_start(self, start: Plan) -> None:
            seen.append(f"{len(start.jobs)} images")

        def on_result(self, result: Result) -> None:
            seen.append(f"{result.job.name} {result.status}")

    summary = denoise_folder(
        imgs, tmp_path / "out", weights="tconv", device="cpu", progress=Names()
    )
    assert summary.exit_code == 1
    assert seen[0] == "4 images"
    wanted = [*(f"{i}.png done" for i in range(3)), "broken.png failed"]
    assert sorted(seen[1:]) == sorted(wanted)
    command = [str(imgs), "-o", str(tmp_path / "again"), "-w", "tconv", "-d", "cpu"]
    assert main(command) == 1
    for index in range(3):
        name = f"{index}.png"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    again = denoise_folder([imgs / "0.png"], tmp_path / "out", weights="tconv", device="cpu")
    assert [result.status for result in again.results] == ["skipped"]
    with pytest.raises(NoImagesError):
        denoise_folder(tmp_path / "out" / ".denoise-batch")
