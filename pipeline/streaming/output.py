"""What the network made of a page, on its way to whoever writes it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..sure import Probe
from .transfer import Download, Mark


@dataclass(frozen=True)
class Output:
    """A page on its way back from the device.

    Attributes:
        download: the page's samples, then whether the network's output was finite.
        marks: before the upload, before and behind the network, behind the last conversion, behind
            the probe.
        share: of the time between the marks that counts for this page.
        seconds: instead of marks, by stage, for pages that took several passes.
        probe: how the network answers to a small change there; on the host after `wait`.
    """

    download: Download
    marks: tuple[Mark, ...] = ()
    share: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)
    probe: Probe | None = None

    def wait(self) -> tuple[Tensor, bool, dict[str, float]]:
        """Samples (H, W, C) on the host, whether all values were finite, seconds by stage."""
        samples, is_finite = self.download.wait()
        if not self.marks:
            return samples, bool(is_finite), self.seconds
        start, ready, made, done, probed = self.marks
        seconds = {
            "transfer": start.seconds_until(ready) + made.seconds_until(done),
            "compute": ready.seconds_until(made),
            "measure": done.seconds_until(probed),
        }
        return samples, bool(is_finite), {k: v * self.share for k, v in seconds.items()}


def are_finite(values: Tensor) -> Tensor:
    """For each image of (N, C, H, W) whether all its values are finite."""
    return torch.isfinite(values.amin((1, 2, 3))) & torch.isfinite(values.amax((1, 2, 3)))
