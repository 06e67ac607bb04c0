"""The portable implementation: convolutions as torch's matrix products, on any device.

For Apple GPUs, CUDA without Triton, processors without the native library, and precisions that
others decline. `conv` holds the convolutions, `pointwise` ops of one pass, `fused` a convolution
with its neighbours.
"""
