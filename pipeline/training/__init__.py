"""Noise2Noise training: photographs or noisy shots → pairs → steps → a run folder."""
