"""Triton implementations of the ops for NVIDIA GPUs, with the names and signatures of `gemm/`.

`dispatch` imports them when a CUDA device is first used: importing `denoise_batch.kernels` never
imports triton. What each kernel does, and how it is tested without a GPU: docs/gpu.md.
"""
