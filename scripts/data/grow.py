"""Turn the weights of a blind U-Net into a start for `unet-level`, which has all its layers.

usage: scripts/data/grow.py UNET.safetensors START.safetensors

Nothing reads the new channels yet, and the new bodies add nothing: where the gate is open, the
start computes what the blind network does (Chen et al., "Net2Net: accelerating learning via
knowledge transfer", 2016).
"""

import re
import sys
from pathlib import Path

import torch

from denoise_batch.models import Network, load_tensors, save_weights

# Behind the two finest ways up: two bodies; one in a blind network.
DECODER = re.compile(r"(3\.(?:inner\.)?decoder\.)([01])\.")

source, target = map(Path, sys.argv[1:])
blind, header = load_tensors(source)
of = header["network"]
start = Network("unet-level", of["mean"], of["std"], torch.Generator())
start.estimator = None
for name, new in start.named_parameters():
    of_two = DECODER.match(name)
    if of_two and of_two[2] == "1":
        if ".body.2." in name:
            new.zero_()
        continue
    name = DECODER.sub(r"\1", name)
    # Without AppendLevel, all layers stand one place earlier.
    old = blind[re.sub(r"^\d+", lambda position: str(int(position[0]) - 1), name)]
    if new.ndim == 4:
        inputs = 0 if name.endswith(".up.weight") else 1
        # Channels that both have read the old ones only.
        new.narrow(1 - inputs, 0, old.shape[1 - inputs]).zero_()
    new[tuple(slice(size) for size in old.shape)] = old
save_weights(target, start, {"noise": f"start from {source.name}"})
