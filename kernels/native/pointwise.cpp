// What is left of a network between its convolutions, each in one pass over memory.
#include "pool.h"
#include "simd.h"

namespace {

constexpr int64_t PIXELS = 4096;  // of a job
constexpr int64_t RUN = 128;      // pixels that are summed in float32

}  // namespace

// db = Σ gated(dy), and `masked` = gated(dy) if there is a gate.
EXPORT void denoise_relu_backward(const float *dy, const float *gate, int64_t pixels, int64_t C,
                                  float *masked, float *db) {
  // So many values on, a lane has the same channel again.
  int64_t period = C % VL ? C * VL : C, jobs = divide_up(pixels, PIXELS);
  double *totals = (double *)scratch(0, 2 * jobs * C);
  Pool::get().parallel(jobs, [=](int64_t job) {
    double *total = totals + job * C;
    for (int64_t c = 0; c < C; c++) total[c] = 0;
    float *sum = scratch(1, period);
    int64_t end = least(pixels, (job + 1) * PIXELS) * C;
    for (int64_t first = job * PIXELS * C; first < end; first += RUN * C) {
      memset(sum, 0, period * sizeof(float));
      for (int64_t from = first; from < least(end, first + RUN * C); from += period)
        for (int64_t i = 0; i < least(period, end - from); i += VL) {
          int lanes = (int)least(VL, end - from - i);
          vec v = load_lanes(dy + from + i, lanes);
          if (gate) {
            v = gated(v, load_lanes(gate + from + i, lanes));
            store_lanes(masked + from + i, v, lanes);
          }
          store(sum + i, load(sum + i) + v);
        }
      for (int64_t i = 0; i < period; i += C)
        for (int64_t c = 0; c < C; c++) total[c] += sum[i + c];
    }
  });
  for (int64_t c = 0; c < C; c++) {
    double total = 0;
    for (int64_t job = 0; job < jobs; job++) total += totals[job * C + c];
    db[c] = (float)total;
  }
}

// y = 1 / (1 + e^−x); y may be x.
EXPORT void denoise_sigmoid(const float *x, int64_t n, float *y) {
  constexpr int64_t VALUES = 16 * 1024;
  Pool::get().parallel(divide_up(n, VALUES), [=](int64_t job) {
    for (int64_t i = job * VALUES; i < least(n, (job + 1) * VALUES); i += VL) {
      int lanes = (int)least(VL, n - i);
      store_lanes(y + i, sigmoid(load_lanes(x + i, lanes)), lanes);
    }
  });
}

// Σ (x − y)² / n, and grad = 2 (x − y) / n.
EXPORT double denoise_mse(const float *x, const float *y, int64_t n, float *grad) {
  constexpr int64_t VALUES = 16 * 1024;
  int64_t jobs = divide_up(n, VALUES);
  double *totals = (double *)scratch(0, 2 * jobs);
  float scale = (float)(2.0 / (double)n);
  Pool::get().parallel(jobs, [=](int64_t job) {
    vec sum = {};
    for (int64_t i = job * VALUES; i < least(n, (job + 1) * VALUES); i += VL) {
      int lanes = (int)least(VL, n - i);
      vec difference = load_lanes(x + i, lanes) - load_lanes(y + i, lanes);
      sum += difference * difference;
      store_lanes(grad + i, difference * scale, lanes);
    }
    double total = 0;
    for (int lane = 0; lane < VL; lane++) total += sum[lane];
    totals[job] = total;
  });
  double total = 0;
  for (int64_t job = 0; job < jobs; job++) total += totals[job];
  return total / (double)n;
}

// y (N, H, W, C) = (x − mean) / std for x with any strides.
EXPORT void denoise_normalize(const float *x, const int64_t *strides, int64_t N, int64_t C,
                              int64_t H, int64_t W, const float *mean, const float *std, float *y) {
  int64_t sn = strides[0], sc = strides[1], sh = strides[2], sw = strides[3];
  Pool::get().parallel(N * H, [=](int64_t line) {
    const float *from = x + line / H * sn + line % H * sh;
    float *to = y + line * W * C;
    for (int64_t c = 0; c < C; c++)
      for (int64_t w = 0; w < W; w++) to[w * C + c] = (from[w * sw + c * sc] - mean[c]) / std[c];
  });
}

// x (N, H·r, W·r, C) → y (N, H, W, C·r²).
EXPORT void denoise_pixel_unshuffle(const float *x, const int64_t *strides, int64_t N, int64_t C,
                                    int64_t H, int64_t W, int64_t r, float *y) {
  int64_t sn = strides[0], sc = strides[1], sh = strides[2], sw = strides[3];
  Pool::get().parallel(N * H, [=](int64_t line) {
    const float *from = x + line / H * sn + line % H * r * sh;
    float *to = y + line * W * C * r * r;
    for (int64_t w = 0; w < W; w++)
      for (int64_t c = 0; c < C; c++)
        for (int64_t i = 0; i < r; i++)
          for (int64_t j = 0; j < r; j++) *to++ = from[i * sh + (w * r + j) * sw + c * sc];
  });
}

// x (N, H, W, C·r²) → y (N, H·r, W·r, C), plus a residual of y's shape with any strides.
EXPORT void denoise_pixel_shuffle(const float *x, int64_t N, int64_t C, int64_t H, int64_t W,
                                  int64_t r, const float *residual, const int64_t *strides, float *y) {
  Pool::get().parallel(N * H * r, [=](int64_t line) {
    int64_t i = line % r, row = line / r;
    const float *from = x + row * W * C * r * r + i * r;
    float *to = y + line * W * r * C;
    for (int64_t w = 0; w < W; w++, from += C * r * r)
      for (int64_t j = 0; j < r; j++)
        for (int64_t c = 0; c < C; c++) *to++ = from[c * r * r + j];
    if (!residual) return;
    int64_t sc = strides[1], sw = strides[3];
    const float *added = residual + line / (H * r) * strides[0] + line % (H * r) * strides[2];
    to = y + line * W * r * C;
    for (int64_t w = 0; w < W * r; w++)
      for (int64_t c = 0; c < C; c++) *to++ += added[w * sw + c * sc];
  });
}
