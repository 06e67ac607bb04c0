// Steps of optimisers over all parameters at once.
#include <math.h>

#include <utility>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace {

constexpr int64_t VALUES = 32 * 1024;  // of a job

#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int ROWS = 6, VECTORS = 2;
#else
constexpr int ROWS = 6, VECTORS = 4;
#endif
constexpr int64_t PANEL = VECTORS * VL;  // columns of a product that are computed together
constexpr int64_t BLOCK = 24;            // rows of the last product
constexpr int64_t TERMS = 256;           // of a sum in one accumulator

// A symmetric matrix of n × n values, rows `ld` apart, columns behind the last zeros.
void pack(const float *A, int64_t n, int64_t ld, float *panels) {
  for (int64_t k = 0; k < ld; k += PANEL)
    for (int64_t row = 0; row < n; row++)
      memcpy(panels + k * n + row * PANEL, A + row * ld + k, PANEL * sizeof(float));
}

// The lower triangle from the upper one.
void mirror(float *A, int64_t n, int64_t ld) {
  for (int64_t j0 = 0; j0 < n; j0 += 16)
    for (int64_t i = j0; i < n; i++)
      for (int64_t j = j0; j < least(i, j0 + 16); j++) A[i * ld + j] = A[j * ld + i];
}

// out = A · B for B in panels: `rows` rows of ld columns. is_symmetric: the product is, so that half
// of it is computed and mirrored.
void multiply(const float *A, int64_t rows, int64_t n, int64_t ld, const float *panels, float *out,
              bool is_symmetric) {
  static const int64_t segment = 0;
  for (int64_t k = 0; k < ld; k += PANEL)
    product_rows<ROWS, VECTORS>(0, is_symmetric ? least(rows, k + PANEL) : rows, A, ld, &segment, 1, n,
                                panels + k * n, [=](int64_t i, int j, vec acc) {
                                  store(out + i * ld + k + j * VL, acc);
                                });
  if (is_symmetric) mirror(out, n, ld);
}

// X (m × n, m ≥ n, rows ld apart) → X · P with P a polynomial of XᵀX that makes its singular values 1.
void orthogonalize(float *X, int64_t m, int64_t n, int64_t ld, int64_t steps) {
  constexpr float a = 3.4445f, b = -4.775f, c = 2.0315f;
  double square = 0;
  for (int64_t row = 0; row < m; row++) {
    vec sum = {};
    for (int64_t k = 0; k < ld; k += VL) sum += load(X + row * ld + k) * load(X + row * ld + k);
    for (int lane = 0; lane < VL; lane++) square += sum[lane];
  }
  float scale = 1 / (float)fmax(sqrt(square), 1e-7);
  for (int64_t i = 0; i < m * ld; i += VL) store(X + i, load(X + i) * scale);

  int64_t size = ld * ld;
  float *gram = scratch(1, size), *factor = scratch(2, size), *P = scratch(3, size);
  float *panels = scratch(4, size), *next = scratch(5, most(size, BLOCK * ld));
  for (int64_t k = 0; k < ld; k += PANEL)
    for (int64_t first = 0; first < m; first += TERMS)
      outer_block(X + first * ld, ld, 0, X + first * ld + k, ld, 0, 1, least(TERMS, m - first),
                  least(n, k + PANEL), PANEL, gram + k, ld, first > 0);
  mirror(gram, n, ld);

  for (int64_t step = 0; step < steps; step++) {
    pack(gram, n, ld, panels);
    multiply(gram, n, n, ld, panels, factor, true);
    for (int64_t i = 0; i < n; i++) {
      for (int64_t k = 0; k < ld; k += VL) {
        int64_t at = i * ld + k;
        store(factor + at, load(factor + at) * c + load(gram + at) * b);
      }
      factor[i * ld + i] += a;
    }
    pack(factor, n, ld, panels);
    if (step == 0) {
      memcpy(P, factor, n * ld * sizeof(float));
    } else {
      multiply(P, n, n, ld, panels, next, true);
      std::swap(P, next);
    }
    if (step + 1 == steps) break;
    multiply(gram, n, n, ld, panels, next, false);
    multiply(next, n, n, ld, panels, gram, true);
  }
  pack(P, n, ld, panels);
  // Row blocks: a product reads all of a row before the row is overwritten.
  float *rows = next;
  for (int64_t row = 0; row < m; row += BLOCK) {
    int64_t count = least(BLOCK, m - row);
    multiply(X + row * ld, count, n, ld, panels, rows, false);
    memcpy(X + row * ld, rows, count * ld * sizeof(float));
  }
}

}  // namespace

// v = momentum · v + g, g = grad + decay · p; p −= lr · v, or lr · (g + momentum · v) with nesterov.
EXPORT void denoise_sgd(int64_t count, float *const *parameters, const float *const *grads,
                        float *const *velocities, const int64_t *sizes, double lr, double momentum,
                        int64_t is_nesterov, double decay) {
  std::vector<int64_t> ends(count);  // in jobs
  int64_t jobs = 0;
  for (int64_t i = 0; i < count; i++) ends[i] = jobs += divide_up(sizes[i], VALUES);
  Pool::get().parallel(jobs, [&](int64_t job) {
    int64_t i = 0;
    while (job >= ends[i]) i++;
    int64_t first = (job - (i ? ends[i - 1] : 0)) * VALUES, end = least(sizes[i], first + VALUES);
    float *p = parameters[i], *v = velocities ? velocities[i] : nullptr;
    for (int64_t at = first; at < end; at += VL) {
      int lanes = (int)least(VL, end - at);
      vec value = load_lanes(p + at, lanes), g = load_lanes(grads[i] + at, lanes);
      g += (float)decay * value;
      if (v) {
        vec velocity = load_lanes(v + at, lanes) * (float)momentum + g;
        store_lanes(v + at, velocity, lanes);
        g = is_nesterov ? g + (float)momentum * velocity : velocity;
      }
      store_lanes(p + at, value - (float)lr * g, lanes);
    }
  });
}

// out[j][i] = in[i][j] for i < rows, j < columns, in blocks whose lines stay in the L1 cache.
static void transpose(const float *in, int64_t lda, int64_t rows, int64_t columns, float *out, int64_t ldo) {
  for (int64_t j0 = 0; j0 < columns; j0 += 16)
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = j0; j < least(columns, j0 + 16); j++) out[j * ldo + i] = in[i * lda + j];
}

// Each matrix (rows × columns) with its singular values made about 1.
EXPORT void denoise_orthogonalize(int64_t count, const float *const *in, float *const *out,
                                  const int64_t *rows, const int64_t *columns, int64_t steps) {
  Pool::get().parallel(count, [=](int64_t i) {
    int64_t R = rows[i], C = columns[i], n = least(R, C), m = most(R, C), ld = round_up(n, PANEL);
    float *X = scratch(0, m * ld);
    bool is_tall = R >= C;
    if (!is_tall) transpose(in[i], C, R, C, X, ld);
    for (int64_t row = 0; row < m; row++) {
      if (is_tall) memcpy(X + row * ld, in[i] + row * C, n * sizeof(float));
      memset(X + row * ld + n, 0, (ld - n) * sizeof(float));
    }
    orthogonalize(X, m, n, ld, steps);
    if (!is_tall) transpose(X, ld, C, R, out[i], C);
    else
      for (int64_t row = 0; row < m; row++) memcpy(out[i] + row * C, X + row * ld, n * sizeof(float));
  });
}
