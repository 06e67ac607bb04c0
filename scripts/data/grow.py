"""Turn blind U-Net weights into a start for `unet-level`, which is told the noise level.

usage: scripts/data/widen.py UNET.safetensors START.safetensors

Both networks have the same layers but for the finest level, which is wider in `unet-level`. Its new
channels read the image and the level from random weights, and nothing reads them yet: where the
gate is open, the start computes what the blind network does (Chen et al., "Net2Net: accelerating
learning via knowledge transfer", 2016). It has no estimator.
"""

import sys
from pathlib import Path

import torch

from denoise_batch.models import Network, load_weights, save_weights

source, target = map(Path, sys.argv[1:])
narrow = load_weights(source).network
start = Network("unet-level", narrow.normalize.mean, narrow.normalize.std, torch.Generator())
start.estimator = None
pairs = zip(narrow.named_parameters(), start.named_parameters(), strict=True)
for (_, old), (name, new) in pairs:
    if new.ndim == 4:
        is_transposed = name.endswith(".up.weight")
        inputs = 0 if is_transposed else 1
        # Channels that both have read the old ones only.
        new.narrow(1 - inputs, 0, old.shape[1 - inputs]).zero_()
    new[tuple(slice(size) for size in old.shape)] = old
save_weights(target, start, {"noise": f"start from {source.name}"})
