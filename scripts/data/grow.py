"""Turn the weights of a smaller U-Net into a start for `unet-level`, which has all its layers.

usage: scripts/data/grow.py SMALLER.safetensors START.safetensors

SMALLER is a blind `unet`, or `unet-level` as it was with one body behind the finest way up. Nothing
reads the new channels yet, and the new body adds nothing: where the gate is open, the start
computes what SMALLER does (Chen et al., "Net2Net: accelerating learning via knowledge transfer",
2016). An estimator is kept.
"""

import re
import sys
from pathlib import Path

import torch

from denoise_batch.models import Network, load_tensors, save_weights

NEW_BODY = r"3\.decoder\.1\.body\."

source, target = map(Path, sys.argv[1:])
smaller, header = load_tensors(source)
of = header["network"]
is_told = of["architecture"] == "unet-level"
start = Network("unet-level", of["mean"], of["std"], torch.Generator())
if "estimator.cells.2.weight" not in smaller:
    start.estimator = None
for name, new in start.named_parameters():
    if re.match(NEW_BODY, name):
        if ".body.2." in name:
            new.zero_()
        continue
    name = name.replace("3.decoder.0.", "3.decoder.")
    if not is_told:  # without AppendLevel, all layers stand one place earlier
        name = re.sub(r"^\d+", lambda position: str(int(position[0]) - 1), name)
    old = smaller[name]
    if new.ndim == 4:
        inputs = 0 if name.endswith(".up.weight") else 1
        # Channels that both have read the old ones only.
        new.narrow(1 - inputs, 0, old.shape[1 - inputs]).zero_()
    new[tuple(slice(size) for size in old.shape)] = old
save_weights(target, start, {"noise": f"start from {source.name}"})
