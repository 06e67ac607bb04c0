"""Bugs to put into the native sources, each for a library of its own: see test_native.py."""

from dataclasses import dataclass

PARITY = "(float64 or threads or callers or exactly or nan) and not forked and not any"
HUGE_TESTS = "beyond_2_to"


@dataclass(frozen=True)
class Bug:
    """What is replaced in a source, wherever it stands, and which tests must see it.

    Attributes:
        source: the file.
        right: what stands there.
        wrong: what it becomes.
        tests: a pytest expression; "thread" for the thread sanitizer.
    """

    source: str
    right: str
    wrong: str
    tests: str = PARITY

    @property
    def is_in_avx512(self) -> bool:
        """Whether only code for AVX-512 has it."""
        return "mm512" in self.right

    @property
    def is_in_avx2(self) -> bool:
        """Whether only code for AVX2 has it."""
        return "_mm_store_ss" in self.right


BUGS = {
    "mask-writes-one-lane-more": Bug(
        "simd.h",
        "_mm512_mask_storeu_ps(p, (__mmask16)((1u << lanes) - 1)",
        "_mm512_mask_storeu_ps(p, (__mmask16)((2u << lanes) - 1)",
    ),
    "mask-writes-one-lane-less": Bug(
        "simd.h",
        "_mm512_mask_storeu_ps(p, (__mmask16)((1u << lanes) - 1)",
        "_mm512_mask_storeu_ps(p, (__mmask16)((1u << (lanes - 1)) - 1)",
    ),
    "avx2-tail-one-lane-more": Bug("simd.h", "if (lanes & 1) _mm_store_ss", "_mm_store_ss"),
    "bias-of-the-first-vector-for-all": Bug(
        "direct.cpp", "load_lanes(bias + j * VL, n)", "load_lanes(bias, n)"
    ),
    "bias-of-the-first-panel-for-all": Bug(
        "direct.cpp", "bias ? bias + channel : nullptr", "bias ? bias : nullptr"
    ),
    "window-one-column-less": Bug("direct.cpp", "least(w, W - x))", "least(w, W - x - 1))"),
    "tile-reads-beyond-its-row": Bug("winograd.cpp", "x + 6 <= rows.end", "x + 5 <= rows.end"),
    "hidden-rows-overwritten": Bug("winograd.cpp", "% 8 * pitch", "% 4 * pitch"),
    "bias-gradient-without-the-last-pixel": Bug(
        "pointwise.cpp", "end = least(pixels, (job + 1)", "end = least(pixels - 1, (job + 1)"
    ),
    "sums-begin-with-what-was-there": Bug("direct.cpp", "job > jobs * part / parts);", "true);"),
    "nobody-waits-for-the-workers": Bug("pool.cpp", "if (soon(is_done)) return;", "return;"),
    "a-job-is-lost": Bug("pool.cpp", "< count_;) body_", "< count_ - 1;) body_"),
    "scratch-shared-by-threads": Bug(
        "simd.h", "static thread_local Scratch memory", "static Scratch memory"
    ),
    "scratch-shared-seen-by-the-sanitizer": Bug(
        "simd.h", "static thread_local Scratch memory", "static Scratch memory", "thread"
    ),
    "no-wait-seen-by-the-sanitizer": Bug(
        "pool.cpp", "if (soon(is_done)) return;", "return;", "thread"
    ),
    "int-of-32-bits-in-winograd": Bug(
        "winograd.cpp",
        "int64_t at = (n * map.H + y + i) * map.W * map.C;",
        "int64_t at = (int)((n * map.H + y + i) * map.W * map.C);",
        f"winograd_{HUGE_TESTS}",
    ),
    "int-of-32-bits-in-direct": Bug(
        "direct.cpp",
        "return {map + (y * W + x) * C, W * C};",
        "return {map + (int)((y * W + x) * C), W * C};",
        f"direct_{HUGE_TESTS}",
    ),
}
