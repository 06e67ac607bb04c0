"""The network as one run asks for it: averaged over an ensemble, mixed with its input, replayed."""

from collections.abc import Callable

import torch
from torch import Tensor

from denoise_batch.kernels.capture import Captured

from ..networks import Network


class Forward:
    """padded images (N, C, H, W) in [0, 1] → the same, denoised; on the network's device.

    Args:
        network: in inference mode.
        strength: 0 keeps the input, 1 takes the network's output, between them their mixture.
        is_ensemble: average over the eight turned and mirrored versions of every image.
        has_cuda_graphs: on CUDA, replay the launches of shapes that come again.
    """

    def __init__(
        self,
        network: Network,
        *,
        strength: float = 1.0,
        is_ensemble: bool = False,
        has_cuda_graphs: bool = False,
    ) -> None:
        self.network = network
        self.strength = strength
        self.is_ensemble = is_ensemble
        self._run: Callable[[Tensor], Tensor] = self._launch
        if has_cuda_graphs:
            self._run = Captured(self._launch, lambda: self.network.compute_dtype)

    def __call__(self, padded: Tensor) -> Tensor:
        """The network's output, averaged over the ensemble, mixed with the input by strength."""
        return self._run(padded)

    def _launch(self, padded: Tensor) -> Tensor:
        values = self._ensemble(padded) if self.is_ensemble else self.network.forward_padded(padded)
        return values if self.strength == 1 else padded.lerp(values, self.strength)

    def _ensemble(self, padded: Tensor) -> Tensor:
        total = torch.zeros_like(padded)
        for turns in range(4):
            for is_mirrored in (False, True):
                view = torch.rot90(padded, turns, (2, 3))
                view = view.flip(3) if is_mirrored else view
                view = view.contiguous(memory_format=torch.channels_last)
                output = self.network.forward_padded(view)
                output = output.flip(3) if is_mirrored else output
                total += torch.rot90(output, -turns, (2, 3))
        return total.div_(8)
