"""Triton twins of the ops for NVIDIA GPUs, with the names and signatures of `gemm/`.

Imported on the first CUDA tensor and not before: importing `denoise_batch.kernels` never imports
triton. What each kernel does, and how it is held without a GPU: docs/gpu.md.
"""
