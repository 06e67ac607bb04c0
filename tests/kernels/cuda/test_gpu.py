"""On a real GPU: `scripts/test -m gpu`. Nobody has run these yet."""

import logging

import pytest
import torch

from denoise_batch.kernels import SGD, MSELoss
from denoise_batch.kernels.dispatch import COMPILING, ops_for
from denoise_batch.kernels.selfcheck import self_check
from denoise_batch.models import ARCHITECTURES, Network

pytestmark = pytest.mark.gpu


def test_every_kernel_passes_its_self_check() -> None:
    failed = [check for check in self_check("cuda") if check.status == "failed"]
    assert not failed


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_networks_give_the_cpu_s_results(
    name: str, dtype: torch.dtype | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    network = Network(name, 0.45, 0.25, torch.Generator().manual_seed(0)).eval()
    image = torch.rand(2, 3, 131, 250)
    with torch.inference_mode():
        expected = network(image)
        output = network.to("cuda").set_compute_dtype(dtype)(image.cuda()).cpu()
    allowed = 1e-4 if dtype is None else 5e-2
    torch.testing.assert_close(output, expected, rtol=0, atol=allowed)
    said = [record.getMessage() for record in caplog.records]
    assert not [line for line in said if line != COMPILING]  # with a cold cache
    assert not ops_for(network.parameters()[0].device).disabled


def test_steps_lower_the_loss_and_repeat_bit_for_bit() -> None:
    def losses() -> list[float]:
        network = Network("unet", 0.45, 0.25, torch.Generator().manual_seed(0)).to("cuda")
        network.set_compute_dtype(torch.bfloat16)
        optimizer, criterion = SGD(network.parameters(), 0.05, momentum=0.9), MSELoss()
        image = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)).cuda()
        found = []
        for _ in range(20):
            found.append(criterion(network(image), image * 0.5))
            optimizer.zero_grad()
            network.backward(criterion.backward(), needs_input_grad=False)
            optimizer.step()
        return [loss.item() for loss in found]

    first = losses()
    assert first[-1] < 0.5 * first[0]
    assert losses() == first
