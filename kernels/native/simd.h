// Vectors of the instruction set that the compiler targets, and products that stay in registers.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <new>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif
typedef float vec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t uvec __attribute__((vector_size(VL * 4), aligned(4), may_alias));

static INLINE vec load(const float *p) { return *(const vec *)p; }
static INLINE void store(float *p, vec v) { *(vec *)p = v; }

// The first `lanes` < VL values; zeros behind them.
static INLINE vec load_tail(const float *p, int lanes) {
#if defined(__AVX512F__)
  return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << lanes) - 1), p);
#elif defined(__AVX2__)
  static const int32_t mask[2 * VL] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return (vec)_mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i *)(mask + VL - lanes)));
#else
  vec v = {};
  memcpy(&v, p, lanes * 4);
  return v;
#endif
}
static INLINE void store_tail(float *p, vec v, int lanes) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << lanes) - 1), (__m512)v);
#elif defined(__AVX2__)  // its masked stores are slow on AMD
  __m128 part = _mm256_castps256_ps128((__m256)v);
  if (lanes & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps((__m256)v, 1);
    p += 4;
  }
  if (lanes & 2) {
    _mm_storel_pi((__m64 *)p, part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (lanes & 1) _mm_store_ss(p, part);
#else
  memcpy(p, &v, lanes * 4);
#endif
}
static INLINE vec load_lanes(const float *p, int lanes) {
  return lanes >= VL ? load(p) : load_tail(p, lanes);
}
static INLINE void store_lanes(float *p, vec v, int lanes) {
  lanes >= VL ? store(p, v) : store_tail(p, v, lanes);
}

// Past the caches, which a map that is larger than they are would only sweep. A job ends with a
// fence, since such stores pass others. AVX2's halves of a line would be slower.
static INLINE void stream(float *p, vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#else
  store(p, v);
#endif
}
static INLINE void stream_fence() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}
constexpr int64_t STREAMED_FLOATS = 6 << 20;  // 24 MB, about an L3 cache
// Whether the vectors of a map of pixels of `channels` are to be streamed.
static INLINE bool is_streamed(const float *map, int64_t pixels, int64_t channels) {
  return pixels * channels >= STREAMED_FLOATS && channels % VL == 0 && (uintptr_t)map % 64 == 0;
}

// NaN passes, as through torch's.
static INLINE vec relu(vec v) { return v < 0 ? vec{} : v; }
// The gradient where a ReLU's output is not 0.
static INLINE vec gated(vec grad, vec output) { return output <= 0 ? vec{} : grad; }

// e^-|x| within 2 units in the last place: 2^n · e^r, |r| ≤ ln(2)/2, a polynomial of degree 6.
static INLINE vec exp_minus_abs(vec x) {
  x = x < 0 ? x : -x;
  auto is_normal = x >= -87.3f;  // below, the result is 0
  x = is_normal ? x : vec{} - 87.3f;
  vec n = x * 1.44269504f + 12582912.0f;  // 1.5 · 2^23: rounds to a whole number
  uvec exponent = (uvec)n;
  n = n - 12582912.0f;
  vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return is_normal ? (vec)((uvec)p + (exponent << 23)) : vec{};
}
static INLINE vec sigmoid(vec x) {
  vec e = exp_minus_abs(x), y = (x < 0 ? e : vec{} + 1.0f) / (1.0f + e);
  return x == x ? y : x;
}

static INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
static INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// What happens to a result before it is stored: activation(result + bias) + residual.
struct Ends {
  const float *bias, *residual;
  int64_t activation;  // 0 none, 1 ReLU, 2 sigmoid
  bool streams;        // is_streamed
};
static INLINE vec activated(vec v, int64_t activation) {
  if (activation == 1) return relu(v);
  return activation == 2 ? sigmoid(v) : v;
}

// Rows × vectors of a product that accumulate in registers.
template <int R, int NV>
struct Tile {
  static constexpr int rows = R, vectors = NV, width = NV * VL;
};

// Call f with the tile that suits `columns`; a packed matrix has panels of its width.
template <class F>
static INLINE void with_tile(int64_t columns, F f) {
  int64_t vectors = divide_up(columns, VL);
#if defined(__AVX2__) && !defined(__AVX512F__)  // 16 registers
  if (vectors % 3 == 0 && vectors % 2) f(Tile<4, 3>{});
  else if (vectors % 2 == 0) f(Tile<6, 2>{});
  else f(Tile<12, 1>{});
#else  // 32
  if (vectors % 4 == 0) f(Tile<6, 4>{});
  else if (vectors % 3 == 0) f(Tile<8, 3>{});
  else if (vectors % 2 == 0) f(Tile<12, 2>{});
  else f(Tile<12, 1>{});
#endif
}
static inline int64_t panel_width(int64_t columns) {
  int64_t width = 0;
  with_tile(columns, [&](auto tile) { width = tile.width; });
  return width;
}

// done(i, j, Σ A[i][·] · B[·][j]) for R rows of A, `row` apart, and NV vectors of the panel B. A row
// is `count` segments of `depth` values, at the offsets `segments`.
template <int R, int NV, class Done>
static INLINE void product(const float *A, int64_t row, const int64_t *segments, int64_t count,
                           int64_t depth, const float *B, Done done) {
  vec acc[R][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) acc[i][j] = vec{};
  for (int64_t s = 0; s < count; s++) {
    const float *a = A + segments[s];
    for (int64_t c = 0; c < depth; c++, B += NV * VL) {
      vec b[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++) b[j] = load(B + j * VL);
#pragma GCC unroll 16
      for (int i = 0; i < R; i++) {
        float value = a[i * row + c];
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) acc[i][j] += value * b[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) done(i, j, acc[i][j]);
}

// The same for n rows: done(i + first, …) in tiles of R rows, then of half as many, …
template <int R, int NV, class Done>
static INLINE void product_rows(int64_t first, int64_t n, const float *A, int64_t row,
                                const int64_t *segments, int64_t count, int64_t depth,
                                const float *B, Done done) {
  for (; first + R <= n; first += R)
    product<R, NV>(A + first * row, row, segments, count, depth, B,
                   [&](int i, int j, vec acc) { done(first + i, j, acc); });
  if constexpr (R > 1)
    if (first < n) product_rows<R / 2, NV>(first, n, A, row, segments, count, depth, B, done);
}

// out (R × NV vectors) (+)= Σ_t A[t][i] · B[t][j] over `lines` lines of T.
template <int R, int NV>
static INLINE void outer(const float *A, int64_t lda, int64_t line_a, const float *B, int64_t ldb,
                         int64_t line_b, int64_t lines, int64_t T, float *out, int64_t ldo, bool add) {
  vec acc[R][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) acc[i][j] = add ? load(out + i * ldo + j * VL) : vec{};
  for (int64_t l = 0; l < lines; l++) {
    const float *a = A + l * line_a, *b = B + l * line_b;
    for (int64_t t = 0; t < T; t++, a += lda, b += ldb) {
      vec v[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++) v[j] = load(b + j * VL);
#pragma GCC unroll 16
      for (int i = 0; i < R; i++)
#pragma GCC unroll 8
        for (int j = 0; j < NV; j++) acc[i][j] += a[i] * v[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) store(out + i * ldo + j * VL, acc[i][j]);
}

template <int R, int NV, class... Rest>
static INLINE void outer_rows(int64_t n, const float *A, float *out, int64_t ldo, bool add,
                              Rest... rest) {
  for (; n >= R; n -= R, A += R, out += R * ldo) {
    auto call = [&](int64_t lda, int64_t line_a, const float *B, int64_t ldb, int64_t line_b,
                    int64_t lines, int64_t T) {
      outer<R, NV>(A, lda, line_a, B, ldb, line_b, lines, T, out, ldo, add);
    };
    call(rest...);
  }
  if constexpr (R > 1)
    if (n > 0) outer_rows<R / 2, NV>(n, A, out, ldo, add, rest...);
}

// out (rows × columns, rows `ldo` apart) (+)= Σ Aᵀ · B over `lines` lines of T values each; columns:
// a multiple of VL.
static inline void outer_block(const float *A, int64_t lda, int64_t line_a, const float *B,
                               int64_t ldb, int64_t line_b, int64_t lines, int64_t T, int64_t rows,
                               int64_t columns, float *out, int64_t ldo, bool add) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  constexpr int R = 6, NV = 2;
#else
  constexpr int R = 8, NV = 2;
#endif
  int64_t j = 0;
  for (; j + NV * VL <= columns; j += NV * VL)
    outer_rows<R, NV>(rows, A, out + j, ldo, add, lda, line_a, B + j, ldb, line_b, lines, T);
  for (; j < columns; j += VL)
    outer_rows<R, 1>(rows, A, out + j, ldo, add, lda, line_a, B + j, ldb, line_b, lines, T);
}

// Memory of a thread that grows and is kept, in huge pages where it fills some. Slots differ within
// one algorithm.
class Scratch {
 public:
  ~Scratch() {
    for (auto &slot : slots_) free(slot.data);
  }
  float *get(int slot, int64_t floats) {
    auto &s = slots_[slot];
    if (s.floats < floats) {
      free(s.data);
      int64_t page = floats * 4 >= HUGE_PAGE ? HUGE_PAGE : 4096;
      s.floats = round_up(floats * 4, page) / 4;
      s.data = (float *)aligned_alloc(page, (size_t)s.floats * 4);
      if (!s.data) {
        s.floats = 0;
        throw std::bad_alloc();
      }
#ifdef MADV_HUGEPAGE
      if (page == HUGE_PAGE) madvise(s.data, (size_t)s.floats * 4, MADV_HUGEPAGE);
#endif
      memset(s.data, 0, (size_t)s.floats * 4);
    }
    return s.data;
  }

 private:
  static constexpr int64_t HUGE_PAGE = 2 << 20;
  struct {
    float *data = nullptr;
    int64_t floats = 0;
  } slots_[6];
};
static inline float *scratch(int slot, int64_t floats) {
  static thread_local Scratch memory;
  return memory.get(slot, floats);
}
