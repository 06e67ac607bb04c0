"""Do no harm: no more is taken away locally than there is noise.

On drawings a network takes lines for noise: what it removed held four times the noise's power.
"""

from torch import Tensor

from denoise_batch.kernels.dispatch import ops_for

# Largest power of what is removed, relative to the noise's.
MOST = 2.0


def limit_residual(input: Tensor, output: Tensor, level: Tensor, most: float = MOST) -> Tensor:
    """Return the output, with output − input scaled down where it is stronger than the noise.

    Args:
        input: (N, C, H, W), multiples of `kernels.guard.BLOCK_PX`.
        output: the same shape.
        level: root mean square of the noise, (N,).
        most: see `MOST`.
    """
    limited: Tensor = ops_for(input.device).limit_residual(input, output, level, most)
    return limited
