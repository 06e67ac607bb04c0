"""C++ implementation of the ops for processors: float32, channels-last, one plain C library.

`build` compiles it once for each instruction set, `library` loads the best one that the processor
has through ctypes, `ops` gives its functions the names and signatures of `reference`. Inside:

    simd.h         vectors, register tiles, the two products that everything is made of
    pool           threads that sleep between calls
    winograd       3×3 convolutions of stride 1 and residual pairs of them; transforms.h: the maths
    direct         every other convolution
    pointwise      normalisation, pixel shuffles, the loss, ReLU's gradient with the bias gradient
"""
