"""Trained weights that ship with the tool, and manifest.json, which describes them.

The manifest holds, for every name: file, sha256, architecture, what it is for, the training
command, the data and the scores. A name's file never changes; better weights get a new name.
`denoise_batch.models` reads them.
"""
