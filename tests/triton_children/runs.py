"""What is compiled, for which chips. Knows nothing of Triton."""

CHIPS = (80, 86, 89, 90, 100)

# Every layer of every shipped network at real sizes, where tensor cores differ most from Ampere's.
_NETWORKS = [
    f"90/{network}-inference-bfloat16-{size}"
    for network in ("tconv", "upsample", "unet", "unet-level")
    for size in ("1x64x64", "16x64x64", "1x1024x1024", "1x4096x4096", "16x4096x4096")
]
_TRAINING = [
    f"90/{network}-training-bfloat16-{size}"
    for network, size in (("unet", "16x96x96"), ("unet-level", "16x96x96"), ("tconv", "64x32x32"))
]
_SINGLE = [
    "80/unet-inference-float32-1x512x768",
    "80/unet-level-inference-float32-1x512x768",
    "80/tconv-training-float32-64x32x32",
]

RUNS = [
    *(f"{chip}/kernels" for chip in CHIPS),
    *(f"{chip}/pages" for chip in (86, 90)),
    "90/limits",
    *_NETWORKS,
    *_TRAINING,
    *_SINGLE,
]
