"""What a run trained, out of its checkpoint: bare layers, or a network of the product."""

from pathlib import Path

from protocol import Protocol, standardisation
from recipes import Recipe, layers

from denoise_batch.kernels import Sequential
from denoise_batch.models import Network, load_tensors


def layers_of(recipe: Recipe, file: Path) -> Sequential:
    """A run's trained layers, lean and without margin, for inference."""
    tensors, _ = load_tensors(file)
    network = layers(recipe)
    network.load_state_dict(
        {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    )
    network.eval()
    return network


def network_of(recipe: Recipe, file: Path, protocol: Protocol) -> Network:
    """A run's network with its standardisation and margin, for images of any size."""
    mean, std = standardisation(protocol) if recipe.is_standardised else ([0.0], [1.0])
    network = Network(recipe.architecture, mean, std)
    # The lean layers hold the same parameters in the same order, an upsampling one under a
    # shorter name.
    names = [name for name, _ in network.named_parameters()]
    values = layers_of(recipe, file).parameters()
    network.load_state_dict(dict(zip(names, values, strict=True)))
    return network.eval()
