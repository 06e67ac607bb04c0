"""Noise2Noise training: photographs and shots → pairs → steps → a run folder."""
