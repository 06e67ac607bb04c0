"""The fast path on any device: convolutions as GEMMs over a window grid in cache, without im2col.

`conv` holds the ops, with the names and signatures of `reference.conv`; `grid` the layout that
makes a kernel's whole neighbourhood one contiguous run; `products` the three GEMM loops over it;
`winograd` does 3×3 kernels with fewer multiplications, `small` training on little with one im2col.
Equations stand in `grid`, measurements in docs/notes/performance.md.
"""
