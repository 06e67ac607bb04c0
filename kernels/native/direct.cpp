// Convolutions of any kernel, stride, padding, dilation and groups as products over rows of pixels.
//
// All join a large map L (N, H, W, C) and a small map S by a kernel (S, L / groups, kh, kw):
//
//     conv2d             S = forward(L)       dL = transpose(dS)    dW = Σ S ⊗ windows(L)
//     conv_transpose2d   L = transpose(S)     dS = forward(dL)      dW = Σ S ⊗ windows(dL)
//
// The windows are never written out: a row of a window is contiguous in an NHWC map, and the next
// pixel's window begins a fixed distance further. Where a kernel reaches beyond the map, a job
// copies its part of it between zeros.
#include <vector>

#include "pool.h"
#include "simd.h"

namespace {

struct Geometry {  // as ctypes fills it
  int64_t n, large_h, large_w, large_c, small_h, small_w, small_c;
  int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;

  int64_t large_per_group() const { return large_c / groups; }
  int64_t small_per_group() const { return small_c / groups; }
};

constexpr int64_t JOB_WIDTH = 480;           // pixels: whole register tiles
constexpr int64_t JOB_FLOATS = 48 * 1024;    // of the map that a job reads
constexpr int64_t MOST_COMBINED = 256;       // columns
constexpr int64_t PARTIAL_FLOATS = 1 << 20;  // of all partial sums of a weight gradient

// A map's rows [y, y + h) and columns [x, x + w), zeros outside; in place if it reaches nowhere out.
struct Window {
  const float *data;
  int64_t pitch;
};
Window window(const float *map, int64_t H, int64_t W, int64_t C, int64_t y, int64_t x, int64_t h,
              int64_t w, int slot) {
  if (y >= 0 && x >= 0 && y + h <= H && x + w <= W) return {map + (y * W + x) * C, W * C};
  float *out = scratch(slot, h * w * C);
  int64_t before = least(w, most(0, -x)), end = most(before, least(w, W - x));
  for (int64_t i = 0; i < h; i++) {
    float *row = out + i * w * C;
    if (y + i < 0 || y + i >= H) {
      memset(row, 0, w * C * sizeof(float));
      continue;
    }
    memset(row, 0, before * C * sizeof(float));
    memcpy(row + before * C, map + ((y + i) * W + x + before) * C, (end - before) * C * sizeof(float));
    memset(row + end * C, 0, (w - end) * C * sizeof(float));
  }
  return {out, w * C};
}

// How a grid of H × W positions is cut into jobs.
struct Blocks {
  int64_t H, W, rows, columns, high, wide;
  Blocks(int64_t H, int64_t W, int64_t floats_per_position) : H(H), W(W) {
    wide = divide_up(W, JOB_WIDTH);
    columns = round_up(divide_up(W, wide), 24);
    wide = divide_up(W, columns);
    rows = most(1, least(H, JOB_FLOATS / (least(W, columns) * floats_per_position)));
    high = divide_up(H, rows);
  }
  int64_t count() const { return high * wide; }
};

// Stores rows of a product as pixels.
struct PixelStore {
  float *out;            // the channels of pixel 0
  const float *residual; // of pixel 0, or null
  const float *bias;     // of the channels, or null
  int64_t step, channels, activation;  // step: from pixel to pixel
  bool streams;
  template <int NV>
  INLINE void operator()(int64_t pixel, int j, vec v) const {
    int64_t lanes = channels - j * VL;
    if (lanes <= 0) return;
    int n = (int)least(VL, lanes);
    int64_t at = pixel * step + j * VL;
    if (bias) v += load_lanes(bias + j * VL, n);
    v = activated(v, activation);
    if (residual) v += load_lanes(residual + at, n);
    if (streams && n == VL) stream(out + at, v);
    else store_lanes(out + at, v, n);
  }
};

// The taps of `forward` as segments of contiguous values.
struct Segments {
  std::vector<int64_t> at;
  int64_t depth;
  Segments(const Geometry &g, int64_t pitch) {
    bool is_joined = g.groups == 1 && g.dilation_w == 1;
    depth = is_joined ? g.kw * g.large_c : g.large_per_group();
    for (int64_t i = 0; i < g.kh; i++)
      for (int64_t j = 0; j < (is_joined ? 1 : g.kw); j++)
        at.push_back(i * g.dilation_h * pitch + j * g.dilation_w * g.large_c);
  }
};

// An output pixel (s·q + r) of `transpose` sums taps k of small pixels q + d with k·dilation =
// r + padding − s·d: for every phase r its own taps. A phase here is one such r (rows × columns), or
// all together, if the zeros that this takes cost less than vectors that are hardly filled.
struct Phase {
  int64_t r_h, r_w, high, wide;      // outputs of one position: rows r_h …, columns r_w …
  std::vector<int64_t> d_h, d_w;     // offsets of small pixels, ascending
  int64_t columns(int64_t channels) const { return high * wide * channels; }
};

int64_t tap(int64_t r, int64_t d, int64_t stride, int64_t pad, int64_t dilation, int64_t k) {
  int64_t reach = r + pad - stride * d;
  return reach >= 0 && reach % dilation == 0 && reach / dilation < k ? reach / dilation : -1;
}
std::vector<int64_t> offsets(int64_t r0, int64_t r1, int64_t stride, int64_t pad, int64_t dilation,
                             int64_t k) {
  std::vector<int64_t> found;
  int64_t first = -divide_up(dilation * (k - 1), stride) - 1, last = (stride + pad) / stride;
  for (int64_t d = first; d <= last; d++) {
    bool is_used = false;
    for (int64_t r = r0; r < r1; r++) is_used |= tap(r, d, stride, pad, dilation, k) >= 0;
    if (is_used) found.push_back(d);
  }
  return found;
}
std::vector<Phase> phases_of(const Geometry &g) {
  auto phase = [&](int64_t r_h, int64_t r_w, int64_t high, int64_t wide) {
    return Phase{r_h, r_w, high, wide,
                 offsets(r_h, r_h + high, g.stride_h, g.pad_h, g.dilation_h, g.kh),
                 offsets(r_w, r_w + wide, g.stride_w, g.pad_w, g.dilation_w, g.kw)};
  };
  int64_t channels = g.large_per_group();
  auto cost = [&](const Phase &p) {
    return (int64_t)(p.d_h.size() * p.d_w.size()) * round_up(p.columns(channels), VL);
  };
  std::vector<Phase> phases;
  int64_t separate = 0;
  for (int64_t i = 0; i < g.stride_h; i++)
    for (int64_t j = 0; j < g.stride_w; j++) {
      phases.push_back(phase(i, j, 1, 1));
      separate += cost(phases.back());
    }
  Phase combined = phase(0, 0, g.stride_h, g.stride_w);
  if (g.groups == 1 && phases.size() > 1 && combined.columns(channels) <= MOST_COMBINED && 10 * cost(combined) < 9 * separate)
    return {combined};
  return phases;
}
int64_t packed_size(const Geometry &g, const Phase &p) {
  return (int64_t)(p.d_h.size() * p.d_w.size()) * g.small_per_group() *
         round_up(p.columns(g.large_per_group()), VL);
}

}  // namespace

EXPORT int64_t denoise_direct_size(const Geometry *g, int64_t is_transposed) {
  if (!is_transposed) return g->kh * g->kw * g->large_c * round_up(g->small_per_group(), VL);
  int64_t size = 0;
  for (auto &phase : phases_of(*g)) size += g->groups * packed_size(*g, phase);
  return size;
}

// [group][panel][kh][kw][large][width] from w (small, large / groups, kh, kw).
static void pack_forward(const Geometry &g, const float *w, float *packed) {
  int64_t C = g.large_per_group(), K = g.small_per_group(), taps = g.kh * g.kw;
  int64_t width = panel_width(K), panels = divide_up(K, width);
  Pool::get().parallel(g.groups * panels, [=](int64_t job) {
    int64_t k0 = job % panels * width, group = job / panels;
    float *panel = packed + job * taps * C * width;
    for (int64_t j = 0; j < width; j++) {
      const float *from = w + (group * K + k0 + j) * C * taps;
      for (int64_t t = 0; t < taps; t++)
        for (int64_t c = 0; c < C; c++)
          panel[(t * C + c) * width + j] = k0 + j < K ? from[c * taps + t] : 0;
    }
  });
}

// For every phase [group][panel][d_h][d_w][small][width].
static void pack_transpose(const Geometry &g, const float *w, float *packed) {
  int64_t L = g.large_per_group(), S = g.small_per_group(), taps = g.kh * g.kw;
  for (auto &phase : phases_of(g)) {
    int64_t columns = phase.columns(L), width = panel_width(columns);
    int64_t panels = divide_up(columns, width), high = phase.d_h.size(), wide = phase.d_w.size();
    Pool::get().parallel(g.groups * panels, [=, &phase, &g](int64_t job) {
      int64_t j0 = job % panels * width, group = job / panels;
      float *panel = packed + job * high * wide * S * width;
      for (int64_t j = 0; j < width; j++) {
        int64_t l = (j0 + j) % L, r = (j0 + j) / L;
        int64_t r_h = phase.r_h + r / phase.wide, r_w = phase.r_w + r % phase.wide;
        for (int64_t a = 0; a < high; a++)
          for (int64_t b = 0; b < wide; b++) {
            int64_t ky = tap(r_h, phase.d_h[a], g.stride_h, g.pad_h, g.dilation_h, g.kh);
            int64_t kx = tap(r_w, phase.d_w[b], g.stride_w, g.pad_w, g.dilation_w, g.kw);
            bool is_zero = j0 + j >= columns || ky < 0 || kx < 0;
            const float *from = w + (group * S * L + l) * taps + ky * g.kw + kx;
            float *to = panel + (a * wide + b) * S * width + j;
            for (int64_t s = 0; s < S; s++) to[s * width] = is_zero ? 0 : from[s * L * taps];
          }
      }
    });
    packed += g.groups * packed_size(g, phase);
  }
}

EXPORT void denoise_direct_pack(const Geometry *g, int64_t is_transposed, const float *w, float *packed) {
  (is_transposed ? pack_transpose : pack_forward)(*g, w, packed);
}

// small = ends(forward(large)).
EXPORT void denoise_direct_forward(const Geometry *geometry, const float *large, const float *packed,
                                   const float *bias, int64_t activation, const float *residual,
                                   float *small) {
  Geometry g = *geometry;
  if (g.kh * g.kw == 1 && g.stride_h * g.stride_w == 1 && g.pad_h + g.pad_w == 0) {
    // A product over all pixels, in whatever rows.
    g.small_w = g.large_w = g.n * g.large_h * g.large_w;
    g.n = g.small_h = g.large_h = 1;
  }
  int64_t C = g.large_per_group(), K = g.small_per_group();
  int64_t reach_h = g.dilation_h * (g.kh - 1) + 1, reach_w = g.dilation_w * (g.kw - 1) + 1;
  bool streams = is_streamed(small, g.n * g.small_h * g.small_w, g.small_c) && g.groups == 1;
  Blocks blocks(g.small_h, g.small_w, g.stride_h * g.stride_w * g.large_c);
  Pool::get().parallel(g.n * blocks.count(), [&](int64_t job) {
    int64_t n = job / blocks.count();
    int64_t y0 = job / blocks.wide % blocks.high * blocks.rows, x0 = job % blocks.wide * blocks.columns;
    int64_t h = least(blocks.rows, g.small_h - y0), w = least(blocks.columns, g.small_w - x0);
    Window in = window(large + n * g.large_h * g.large_w * g.large_c, g.large_h, g.large_w, g.large_c,
                       y0 * g.stride_h - g.pad_h, x0 * g.stride_w - g.pad_w,
                       (h - 1) * g.stride_h + reach_h, (w - 1) * g.stride_w + reach_w, 0);
    Segments segments(g, in.pitch);
    int64_t size = (int64_t)segments.at.size() * segments.depth;
    with_tile(K, [&](auto tile) {
      constexpr int R = tile.rows, NV = tile.vectors, width = tile.width;
      for (int64_t group = 0; group < g.groups; group++)
        for (int64_t k = 0; k < K; k += width) {
          const float *panel = packed + (group * round_up(K, width) + k) * size;
          int64_t channel = group * K + k;
          for (int64_t y = 0; y < h; y++) {
            int64_t at = ((n * g.small_h + y0 + y) * g.small_w + x0) * g.small_c + channel;
            PixelStore to{small + at, residual ? residual + at : nullptr,
                          bias ? bias + channel : nullptr, g.small_c, K - k, activation, streams};
            product_rows<R, NV>(0, w, in.data + y * g.stride_h * in.pitch + group * C,
                                g.stride_w * g.large_c, segments.at.data(), segments.at.size(),
                                segments.depth, panel, [&](int64_t pixel, int j, vec v) {
                                  to.template operator()<NV>(pixel, j, v);
                                });
          }
        }
    });
    stream_fence();
  });
}

// large = ends(transpose(small)).
EXPORT void denoise_direct_transpose(const Geometry *geometry, const float *small,
                                     const float *packed, const float *bias, int64_t activation,
                                     const float *residual, float *large) {
  const Geometry g = *geometry;
  const int64_t L = g.large_per_group(), S = g.small_per_group();
  const std::vector<Phase> phases = phases_of(g);
  int64_t first_h = 0, last_h = 0, first_w = 0, last_w = 0;
  for (auto &p : phases) {
    for (int64_t d : p.d_h) first_h = least(first_h, d), last_h = most(last_h, d);
    for (int64_t d : p.d_w) first_w = least(first_w, d), last_w = most(last_w, d);
  }
  bool streams = is_streamed(large, g.n * g.large_h * g.large_w, g.large_c) && g.groups == 1;
  Blocks blocks(divide_up(g.large_h, g.stride_h), divide_up(g.large_w, g.stride_w), g.small_c);
  Pool::get().parallel(g.n * blocks.count(), [&](int64_t job) {
    int64_t n = job / blocks.count();
    int64_t y0 = job / blocks.wide % blocks.high * blocks.rows, x0 = job % blocks.wide * blocks.columns;
    int64_t h = least(blocks.rows, blocks.H - y0), w = least(blocks.columns, blocks.W - x0);
    Window in = window(small + n * g.small_h * g.small_w * g.small_c, g.small_h, g.small_w, g.small_c,
                       y0 + first_h, x0 + first_w, h + last_h - first_h, w + last_w - first_w, 0);
    const float *part = packed;
    for (auto &phase : phases) {
      int64_t columns = phase.columns(L), high = phase.d_h.size(), wide = phase.d_w.size();
      bool is_joined = g.groups == 1 && wide > 0 && phase.d_w.back() - phase.d_w[0] == wide - 1;
      int64_t depth = is_joined ? wide * S : S, size = high * wide * S;
      std::vector<int64_t> segments;
      for (int64_t a = 0; a < high; a++)
        for (int64_t b = 0; b < (is_joined ? 1 : wide); b++)
          segments.push_back((phase.d_h[a] - first_h) * in.pitch + (phase.d_w[b] - first_w) * g.small_c);
      bool is_combined = phase.high * phase.wide > 1;
      with_tile(columns, [&](auto tile) {
        constexpr int R = tile.rows, NV = tile.vectors, width = tile.width;
        int64_t padded = round_up(columns, width);
        for (int64_t group = 0; group < g.groups; group++) {
          const float *panels = part + group * padded * size;
          for (int64_t q = 0; q < h; q++) {
            const float *from = in.data + q * in.pitch + group * S;
            if (!is_combined) {
              int64_t y = (y0 + q) * g.stride_h + phase.r_h, x = x0 * g.stride_w + phase.r_w;
              int64_t pixels = least(w, divide_up(g.large_w - x, g.stride_w));
              if (y >= g.large_h) continue;
              for (int64_t l = 0; l < L; l += width) {
                int64_t channel = group * L + l, at = ((n * g.large_h + y) * g.large_w + x) * g.large_c + channel;
                PixelStore to{large + at, residual ? residual + at : nullptr, bias ? bias + channel : nullptr,
                              g.stride_w * g.large_c, L - l, activation, streams};
                product_rows<R, NV>(0, pixels, from, g.small_c, segments.data(), segments.size(), depth,
                                    panels + l * size, [&](int64_t pixel, int j, vec v) {
                                      to.template operator()<NV>(pixel, j, v);
                                    });
              }
              continue;
            }
            // A row of positions; then each of its rows of outputs, which are contiguous.
            float *row = scratch(1, w * padded), *biases = scratch(2, padded);
            for (int64_t l = 0; l < columns; l++) biases[l] = bias ? bias[l % L] : 0;
            for (int64_t l = 0; l < columns; l += width)
              product_rows<R, NV>(0, w, from, g.small_c, segments.data(), segments.size(), depth,
                                  panels + l * size, [&](int64_t pixel, int j, vec v) {
                                    v = activated(v + load(biases + l + j * VL), activation);
                                    store(row + pixel * padded + l + j * VL, v);
                                  });
            int64_t run = phase.wide * L, end = least((x0 + w) * g.stride_w, g.large_w) * L;
            for (int64_t i = 0; i < least(phase.high, g.large_h - (y0 + q) * g.stride_h); i++) {
              int64_t line = (n * g.large_h + (y0 + q) * g.stride_h + i) * g.large_w * L;
              for (int64_t p = 0; p < w; p++) {
                int64_t first = (x0 + p) * run, values = end - first;
                // Whole vectors, whose rest the next position overwrites; AVX-512 masks for nothing.
                if (VL == 16) values = least(run, values);
                const float *from_row = row + p * padded + i * run;
                for (int64_t l = 0; l < least(run, values); l += VL) {
                  int lanes = (int)least(VL, values - l);
                  int64_t at = line + first + l;
                  vec v = load_lanes(from_row + l, lanes);
                  if (residual) v += load_lanes(residual + at, lanes);
                  store_lanes(large + at, v, lanes);
                }
              }
            }
          }
        }
      });
      part += g.groups * packed_size(g, phase);
    }
    stream_fence();
  });
}

// dW (small, large / groups, kh, kw) = Σ small ⊗ windows(large).
EXPORT void denoise_direct_weights(const Geometry *geometry, const float *large, const float *small, float *dw) {
  const Geometry g = *geometry;
  const int64_t C = g.large_per_group(), K = g.small_per_group(), Kv = round_up(K, VL);
  const bool is_joined = g.groups == 1 && g.dilation_w == 1;
  const int64_t depth = is_joined ? g.kw * C : C, across = is_joined ? 1 : g.kw;
  const int64_t size = g.groups * g.kh * g.kw * C * Kv;  // [group][kh][kw][large][small]
  const int64_t reach_h = g.dilation_h * (g.kh - 1) + 1, reach_w = g.dilation_w * (g.kw - 1) + 1;
  const Blocks blocks(g.small_h, g.small_w, 2 * (g.stride_h * g.stride_w * g.large_c + g.small_c));
  const int64_t jobs = g.n * blocks.count();
  // The parts do not depend on the number of threads, so neither do the sums.
  const int64_t parts = least(jobs, most(2, least(16, PARTIAL_FLOATS / size)));
  float *sums = scratch(2, parts * size);
  Pool::get().parallel(parts, [&](int64_t part) {
    float *sum = sums + part * size;
    for (int64_t job = jobs * part / parts; job < jobs * (part + 1) / parts; job++) {
      int64_t n = job / blocks.count();
      int64_t y0 = job / blocks.wide % blocks.high * blocks.rows, x0 = job % blocks.wide * blocks.columns;
      int64_t h = least(blocks.rows, g.small_h - y0), w = least(blocks.columns, g.small_w - x0);
      Window in = window(large + n * g.large_h * g.large_w * g.large_c, g.large_h, g.large_w, g.large_c,
                         y0 * g.stride_h - g.pad_h, x0 * g.stride_w - g.pad_w,
                         (h - 1) * g.stride_h + reach_h, (w - 1) * g.stride_w + reach_w, 0);
      const float *grad = small + ((n * g.small_h + y0) * g.small_w + x0) * g.small_c;
      int64_t pixel = g.small_c, line = g.small_w * g.small_c;
      for (int64_t group = 0; group < g.groups; group++) {
        const float *values = grad + group * K;
        if (K < Kv) {  // whole vectors
          float *copy = scratch(1, h * w * Kv);
          for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++)
              for (int64_t k = 0; k < Kv; k += VL)
                store(copy + (y * w + x) * Kv + k,
                      load_lanes(values + y * g.small_w * g.small_c + x * g.small_c + k, (int)least(VL, K - k)));
          values = copy, pixel = Kv, line = w * Kv;
        }
        for (int64_t i = 0; i < g.kh; i++)
          for (int64_t j = 0; j < across; j++)
            outer_block(in.data + i * g.dilation_h * in.pitch + j * g.dilation_w * g.large_c + group * C,
                        g.stride_w * g.large_c, g.stride_h * in.pitch, values, pixel, line, h, w, depth, Kv,
                        sum + ((group * g.kh + i) * g.kw + j) * C * Kv, Kv, job > jobs * part / parts);
      }
    }
  });
  const int64_t taps = g.kh * g.kw;
  Pool::get().parallel(g.groups * C, [&](int64_t job) {
    int64_t group = job / C, c = job % C;
    for (int64_t t = 0; t < taps; t++)
      for (int64_t k = 0; k < K; k += VL) {
        vec total = {};
        for (int64_t part = 0; part < parts; part++)
          total += load(sums + part * size + ((group * taps + t) * C + c) * Kv + k);
        for (int64_t lane = 0; lane < least(VL, K - k); lane++)
          dw[((group * K + k + lane) * C + c) * taps + t] = total[lane];
      }
  });
}
