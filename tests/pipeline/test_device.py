"""An asked-for device is there, or the run ends with a clear error."""

import importlib

import pytest
import torch

from denoise_batch.device import describe_device, precision_on, resolve_device, torch_dtype
from denoise_batch.kernels import DeviceError, OptionError


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "cuda:", "cuda:x", "cpu:0", "mps:1", "cuda:-1", "cuda:²", "cuda:٣", "cuda:01"],
)
def test_nonsense_names_the_choices(name: str) -> None:
    with pytest.raises(OptionError, match="auto, cpu, cuda"):
        resolve_device(name)


def test_missing_cuda_is_an_error_never_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device cpu"):
        resolve_device("cuda")
    assert resolve_device("auto").type in ("cpu", "mps")


def test_a_device_number_too_high_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda size, device, ones=torch.ones: ones(size))
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="2 CUDA devices"):
        resolve_device("cuda:2")


def test_missing_mps_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="Apple"):
        resolve_device("mps")


def test_an_intel_gpu_is_taken_if_torch_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="no Intel GPU"):
        resolve_device("xpu:1")
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda size, device, ones=torch.ones: ones(size))
    assert resolve_device("xpu") == resolve_device("auto") == torch.device("xpu")
    assert precision_on("auto", torch.device("xpu")) == "fp32"


def test_a_driver_that_fails_when_cuda_starts_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch raises its own DeferredCudaCallError then, which is no RuntimeError."""

    def ones(size: int, device: torch.device) -> torch.Tensor:
        try:
            raise RuntimeError("device >= 0 && device < num_gpus INTERNAL ASSERT FAILED")
        except RuntimeError as error:
            message = f"CUDA call failed lazily at initialization with error: {error}"
            raise torch.cuda.DeferredCudaCallError(f"{message}\n\nCUDA call was …") from error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(DeviceError, match=r"it failed .*lazily.*nvidia-smi") as caught:
        resolve_device("cuda")
    assert "\n" not in str(caught.value)
    assert resolve_device("auto") == torch.device("cpu")
    assert "takes the next one" in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: ones(1, device))
    assert describe_device("cuda") == "cuda"


def test_other_gpus_are_described_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Arc A770")
    assert describe_device("xpu:0, xpu:1") == "2 × Arc A770"
    assert describe_device("mps") == "Apple GPU"


@pytest.mark.parametrize("module", ["batch", "train", "evaluate", "doctor"])
def test_every_command_s_help_names_the_devices_that_are_accepted(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    command = importlib.import_module(f"denoise_batch.cli.{module}")
    assert command.main(["--help"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "--device  " in line)
    for name in ("auto", "cpu", "cuda:N", "mps", "xpu"):
        assert name in line


def test_a_device_is_described_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["H100", "H200", "H100"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index or 0])
    processor = describe_device("cpu")
    assert processor.endswith(", 1 thread")
    assert describe_device("cuda") == describe_device("cuda:0") == "H100"
    assert describe_device("cuda:0, cuda:1, cuda:2") == "2 × H100, H200"
    assert describe_device("cpu, cpu") == f"2 × {processor}"


def test_what_is_no_device_of_this_machine_is_its_own_description(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(device: torch.device) -> str:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "get_device_name", missing)
    for name in ("Ray (2 × CPU)", "Ray (1 × GPU)", "cuda:0, cuda:1", "cpu, none"):
        assert describe_device(name) == name


def test_precisions_are_torch_dtypes() -> None:
    assert torch_dtype("fp32") is None
    assert torch_dtype("bf16") == torch.bfloat16
    assert torch_dtype("fp16") == torch.float16


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")],
)
def test_auto_is_what_the_gpu_s_tensor_cores_compute_in(
    capability: tuple[int, int],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_on("auto", torch.device("cuda:0")) == precision
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (precision == "fp16")
    assert all("fp16 on cuda:0, which has no bf16" in line for line in said)
    assert precision_on("fp32", torch.device("cuda:0")) == "fp32"
    assert precision_on("auto", torch.device("cpu")) == "fp32"
