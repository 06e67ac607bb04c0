"""Small pictures to denoise."""

import torch
from PIL import Image


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth coloured picture with a little noise in it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 4, 4, generator=generator)
    rows = torch.linspace(0, 3, height).round().long()
    columns = torch.linspace(0, 3, width).round().long()
    image = coarse[:, rows][:, :, columns]
    image = image + 0.1 * torch.randn(image.shape, generator=generator)
    pixels = (image.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))
