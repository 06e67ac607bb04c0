"""The fast implementation for any device: convolutions as matrix products (GEMMs) of torch.

`conv` holds the ops; `products` the three GEMM loops over a grid in cache in which a kernel's whole
neighbourhood is one contiguous run, without im2col; `winograd` does 3×3 kernels with fewer
multiplications, `im2col` training on little with one im2col; `pointwise` and `fused` the rest.
Measurements: docs/notes/performance.md.
"""
