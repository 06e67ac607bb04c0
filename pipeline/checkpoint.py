"""Networks as safetensors files that say what they are.

A file's metadata has one entry, `denoise-batch`: JSON with `format` (1), `network` (architecture,
mean, std) and `training` (how the weights came about: noise, seed, scores; free in its keys). One
entry, because safetensors writes several in random order, and equal weights shall be equal files.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError, TensorSpec, safe_open
from torch import Tensor

from denoise_batch import weights as shipped
from denoise_batch.kernels import DenoiseBatchError, WeightsError

from .files.atomic import atomic_write
from .networks import Network

KEY = "denoise-batch"
FORMAT = 1


@dataclass(frozen=True)
class Weights:
    """A loaded weights file.

    Attributes:
        network: in inference mode, on the CPU, float32.
        training: how the weights came about.
        sha256: of the file.
    """

    network: Network
    training: dict[str, Any]
    sha256: str


def save_weights(path: Path, network: Network, training: Mapping[str, Any]) -> None:
    """Write the network to `path`, wholly or not at all.

    Raises:
        WeightsError: the file cannot be written.
    """
    standardize = network.standardize
    header = {
        "format": FORMAT,
        "network": {
            "architecture": network.architecture,
            "mean": standardize.mean,
            "std": standardize.std,
        },
        "training": dict(training),
    }
    tensors = {name: value.float() for name, value in network.named_parameters()}
    save_tensors(path, tensors, header)


def load_weights(path: Path) -> Weights:
    """Read a file that `save_weights` wrote.

    Raises:
        WeightsError: the file is missing, damaged, not of this tool, or its tensors do not fit
            the architecture that it names.
    """
    tensors, header = load_tensors(path)
    try:
        if header["format"] != FORMAT:
            raise WeightsError(f"format {header['format']!r}, this version reads {FORMAT}")
        spec, training = header["network"], header["training"]
        mean, std = _one_or_three(spec["mean"]), _one_or_three(spec["std"])
        network = Network(spec["architecture"], mean, std)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, OverflowError, DenoiseBatchError) as error:
        raise WeightsError(f"{path}: its tensors or header do not fit: {error}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights(network.eval(), training, digest)


def _one_or_three(numbers: list[float]) -> list[float]:
    """What a standardisation subtracts or divides by; 10⁴⁰⁰, say, raises OverflowError."""
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise WeightsError(f"standardisation {numbers!r:.50}: one finite number, or three")
    return numbers


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to a safetensors file, wholly or not at all.

    Raises:
        WeightsError: the file cannot be written.
    """
    # safetensors' own torch door imports numpy, which is no dependency of ours. The plain tensors
    # must outlive serialize: it reads their memory.
    plain = {name: value.to("cpu").contiguous() for name, value in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=str(value.dtype).removeprefix("torch."),
            shape=list(value.shape),
            data_ptr=value.data_ptr(),
            data_len=value.numel() * value.element_size(),
        )
        for name, value in plain.items()
    }
    metadata = {KEY: json.dumps(dict(header), sort_keys=True)}
    try:
        atomic_write(path, safetensors.serialize(specs, metadata))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror}") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote: the tensors, on the CPU, and the header.

    Raises:
        WeightsError: the file is missing, damaged or not of this tool.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {error}") from error
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error})") from error
    if KEY not in metadata:
        raise WeightsError(
            f"{path}: not weights of denoise-batch; take a file that denoise-train wrote, "
            "or a name of the shipped ones"
        )
    try:
        header = json.loads(metadata[KEY])
    except ValueError as error:
        raise WeightsError(f"{path}: its tensors or header do not fit: {error}") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: its tensors or header do not fit: {header!r:.50}")
    return tensors, header


def find_weights(name_or_file: str | None) -> Path:
    """The file that `--weights` means: a path, a shipped name, or the default.

    Raises:
        WeightsError: neither a file nor a shipped name.
    """
    if name_or_file is None:
        return shipped.path(shipped.names()[0])
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    if Path(name_or_file).suffix:
        raise WeightsError(f"{name_or_file}: there is no such weights file")
    return shipped.path(name_or_file)
