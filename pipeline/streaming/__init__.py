"""The main job: read → batch → denoise → write, for whole folders."""
