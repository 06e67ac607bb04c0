// 3×3 convolutions of stride 1 by F(4×4, 3×3): forward, input gradient, weight gradient, and a
// residual pair whose hidden map never leaves the L2 cache.
//
// Maps are NHWC. A map is cut into tiles of 4×4 outputs. A tile's 6×6 inputs become 36 vectors of C
// channels, V[36][tiles][C]; 36 products with the transformed weights U[36][C][K] give
// M[36][tiles][K], which become the outputs. A block of tiles is as large as its V and M stay in L2.
#include "pool.h"
#include "simd.h"
#include "transforms.h"

namespace {

constexpr int64_t L2_FLOATS = 60 * 1024;   // what V and M of a block may take
constexpr int64_t L3_FLOATS = 750 * 1000;  // … and of a chunk of the weight gradient
constexpr int64_t OUTER_LENGTH = 256;      // tiles that an accumulator of it sums at once
// A weight gradient whose sums are no more keeps them in a thread's L2 cache, as far as they go
// with V and M of a block of tiles; the blocks are added up in so many parts.
constexpr int64_t MOST_PRIVATE = 160 * 1000, PRIVATE_FLOATS = 400 * 1000, PARTS = 16;

int64_t lanes_of(int64_t channels) { return round_up(channels, VL); }
// Planes 64 bytes more than a power of two apart lie in other cache sets.
int64_t plane(int64_t rows, int64_t columns) { return rows * columns + 16; }
// … of tiles: `multiply` rounds them up to whole register tiles.
int64_t tile_plane(int64_t tiles, int64_t lanes) { return plane(round_up(tiles, 24), lanes); }
int64_t block_tiles(int64_t C, int64_t K) {
  int64_t tiles = L2_FLOATS / (36 * (lanes_of(C) + lanes_of(K))) / 12 * 12;
  return most(12, least(24, tiles));
}

// A map that is read, and perhaps a ReLU's output of the same shape that gates it: where that is
// not positive, the map counts as 0.
struct Map {
  const float *data, *gate;
  int64_t N, H, W, C;
};

// The six rows that a row of tiles reads, null where there are none, and the columns that exist.
struct Rows {
  const float *data[6], *gate[6];
  int64_t first, end;
};

Rows rows_of(const Map &map, int64_t n, int64_t y) {
  Rows rows{{}, {}, 0, map.W};
  for (int i = 0; i < 6; i++)
    if (y + i >= 0 && y + i < map.H) {
      int64_t at = (n * map.H + y + i) * map.W * map.C;
      rows.data[i] = map.data + at;
      rows.gate[i] = map.gate ? map.gate + at : nullptr;
    }
  return rows;
}

template <bool GATED>
INLINE vec fetch(const float *data, const float *gate, int64_t at, int lanes) {
  vec v = load_lanes(data + at, lanes);
  return GATED ? gated(v, load_lanes(gate + at, lanes)) : v;
}

// V of the tile whose inputs begin at column x, `ps` apart.
template <bool GATED>
INLINE void transform_data(const Rows &rows, int64_t x, int64_t C, float *V, int64_t ps) {
  bool is_inside = x >= rows.first && x + 6 <= rows.end;
  for (int i = 0; i < 6; i++) is_inside &= rows.data[i] != nullptr;
  for (int64_t c = 0; c < C; c += VL) {
    int lanes = (int)least(VL, C - c);
    vec half[36];
    if (is_inside && lanes == VL) {
#pragma GCC unroll 6
      for (int j = 0; j < 6; j++) {
        vec d[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
          d[i] = fetch<GATED>(rows.data[i], rows.gate[i], (x + j) * C + c, VL);
        winograd::data(d, 1, half + j, 6);
      }
    } else {
      for (int j = 0; j < 6; j++) {
        vec d[6];
        bool exists = x + j >= rows.first && x + j < rows.end;
        for (int i = 0; i < 6; i++)
          d[i] = exists && rows.data[i]
                     ? fetch<GATED>(rows.data[i], rows.gate[i], (x + j) * C + c, lanes)
                     : vec{};
        winograd::data(d, 1, half + j, 6);
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
      vec v[6];
      winograd::data(half + i * 6, 1, v, 1);
#pragma GCC unroll 6
      for (int j = 0; j < 6; j++) store(V + (i * 6 + j) * ps + c, v[j]);
    }
  }
}
INLINE void transform_data(const Map &map, const Rows &rows, int64_t x, float *V, int64_t ps) {
  if (map.gate) transform_data<true>(rows, x, map.C, V, ps);
  else transform_data<false>(rows, x, map.C, V, ps);
}

// M of a tile → the h × w outputs that exist, at[i]: where row i begins in `y` and in the residual.
// FULL: all 4 × 4 exist, in whole vectors.
template <bool FULL, bool RELU, bool ADD>
INLINE void transform_output(const float *M, int64_t ps, int64_t K, const Ends &ends, float *y,
                             const int64_t *at, int64_t h, int64_t w) {
  for (int64_t k = 0; k < K; k += VL) {
    int lanes = FULL ? VL : (int)least(VL, K - k);
    vec half[24], bias = ends.bias ? load_lanes(ends.bias + k, lanes) : vec{};
#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) {
      vec m[6];
#pragma GCC unroll 6
      for (int i = 0; i < 6; i++) m[i] = load(M + (i * 6 + j) * ps + k);
      winograd::output(m, 1, half + j, 6);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      vec v[4];
      winograd::output(half + i * 6, 1, v, 1);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++)
        if (FULL || (i < h && j < w)) {
          int64_t place = at[i] + j * K + k;
          vec r = v[j] + bias;
          r = FULL ? (RELU ? relu(r) : r) : activated(r, ends.activation);
          if (FULL ? ADD : ends.residual != nullptr) r += load_lanes(ends.residual + place, lanes);
          if (FULL && ends.streams) stream(y + place, r);
          else store_lanes(y + place, r, lanes);
        }
    }
  }
}
INLINE void transform_output(const float *M, int64_t ps, int64_t K, const Ends &ends, float *y,
                             const int64_t *at, int64_t h, int64_t w) {
  if (h < 4 || w < 4 || K % VL || ends.activation > 1)
    transform_output<false, false, false>(M, ps, K, ends, y, at, h, w);
  else if (ends.residual && ends.activation)
    transform_output<true, true, true>(M, ps, K, ends, y, at, h, w);
  else if (ends.residual)
    transform_output<true, false, true>(M, ps, K, ends, y, at, h, w);
  else if (ends.activation)
    transform_output<true, true, false>(M, ps, K, ends, y, at, h, w);
  else
    transform_output<true, false, false>(M, ps, K, ends, y, at, h, w);
}

// A dy Aᵀ of a tile's h × w output gradients, whose sums over pixels are added to `sum`.
template <bool GATED>
INLINE void transform_gradient(const float *dy, const float *gate, const int64_t *at, int64_t K,
                               int64_t h, int64_t w, float *sum, float *M, int64_t ps) {
  for (int64_t k = 0; k < K; k += VL) {
    int lanes = (int)least(VL, K - k);
    vec half[24], total = load(sum + k);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      vec d[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        d[i] = i < h && j < w ? fetch<GATED>(dy, gate, at[i] + j * K + k, lanes) : vec{};
        total += d[i];
      }
      winograd::output_gradient(d, 1, half + j, 4);
    }
    store(sum + k, total);
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
      vec m[6];
      winograd::output_gradient(half + i * 4, 1, m, 1);
#pragma GCC unroll 6
      for (int j = 0; j < 6; j++) store(M + (i * 6 + j) * ps + k, m[j]);
    }
  }
}

// M[p] = V[p] · U[p]; rows behind the last tile are computed in vain.
void multiply(const float *V, int64_t vs, const float *U, float *M, int64_t ms, int64_t tiles,
              int64_t C, int64_t K) {
  static const int64_t segment = 0;
  int64_t Cv = lanes_of(C), Kv = lanes_of(K), us = plane(C, Kv);
  with_tile(K, [&](auto tile) {
    constexpr int R = tile.rows, NV = tile.vectors, width = tile.width;
    for (int p = 0; p < 36; p++)
      for (int64_t k = 0; k < Kv; k += width)
        for (int64_t t = 0; t < tiles; t += R) {
          float *m = M + p * ms + t * Kv + k;
          product<R, NV>(V + p * vs + t * Cv, Cv, &segment, 1, C, U + p * us + k * C,
                         [=](int i, int j, vec acc) { store(m + i * Kv + j * VL, acc); });
        }
  });
}

struct Tiles {  // of a batch of maps, numbered through
  int64_t N, H, W, high, wide;
  Tiles(int64_t N, int64_t H, int64_t W)
      : N(N), H(H), W(W), high(divide_up(H, 4)), wide(divide_up(W, 4)) {}
  int64_t count() const { return N * high * wide; }
  int64_t image(int64_t tile) const { return tile / (high * wide); }
  int64_t y(int64_t tile) const { return tile / wide % high * 4; }
  int64_t x(int64_t tile) const { return tile % wide * 4; }
  void rows(int64_t tile, int64_t channels, int64_t *at) const {
    for (int i = 0; i < 4; i++)
      at[i] = ((image(tile) * H + y(tile) + i) * W + x(tile)) * channels;
  }
};

// V of the tiles from `first` on; the map's outputs begin `pad` before it.
void transform_block(const Map &map, const Tiles &tiles, int64_t pad_h, int64_t pad_w,
                     int64_t first, int64_t count, float *V, int64_t vs) {
  int64_t row = -1, Cv = lanes_of(map.C);
  Rows rows{};
  for (int64_t t = 0; t < count; t++) {
    int64_t tile = first + t;
    if (tile / tiles.wide != row) {
      row = tile / tiles.wide;
      rows = rows_of(map, tiles.image(tile), tiles.y(tile) - pad_h);
    }
    transform_data(map, rows, tiles.x(tile) - pad_w, V + t * Cv, vs);
  }
}

}  // namespace

EXPORT int64_t denoise_winograd_size(int64_t in, int64_t out) { return 36 * plane(in, lanes_of(out)); }

// U from weights w[o · so + i · si + tap]; is_turned: of the filter turned by 180°.
EXPORT void denoise_winograd_pack(const float *w, int64_t in, int64_t out, int64_t so, int64_t si,
                                  int64_t is_turned, float *U) {
  int64_t Kv = lanes_of(out), us = plane(in, Kv), width = panel_width(out), blocks = divide_up(in, 16);
  // A job fills 16 rows of a panel, one after the other, since it writes to 36 places at once.
  Pool::get().parallel(blocks * (Kv / width), [=](int64_t job) {
    int64_t panel = job / blocks * width, first = job % blocks * 16;
    for (int64_t c = first; c < least(in, first + 16); c++)
      for (int64_t k = panel; k < panel + width; k += VL) {
        vec half[18], u[36];
        alignas(64) float taps[9][VL] = {};
        for (int64_t lane = 0; lane < least(VL, out - k); lane++) {
          const float *from = w + (k + lane) * so + c * si;
          for (int tap = 0; tap < 9; tap++) taps[tap][lane] = from[is_turned ? 8 - tap : tap];
        }
        vec g[9];
        for (int tap = 0; tap < 9; tap++) g[tap] = load(taps[tap]);
        for (int j = 0; j < 3; j++) winograd::weight(g + j, 3, half + j, 3);
        for (int i = 0; i < 6; i++) winograd::weight(half + i * 3, 1, u + i * 6, 1);
        float *to = U + panel * in + c * width + k - panel;
        for (int p = 0; p < 36; p++) store(to + p * us, u[p]);
      }
  });
}

// y (N, OH, OW, K) = ends(conv3×3(x)) for x (N, H, W, C) between `pad` zeros; negative: cut off.
EXPORT void denoise_winograd_conv(const float *x, const float *gate, int64_t N, int64_t H,
                                  int64_t W, int64_t C, int64_t pad_h, int64_t pad_w,
                                  const float *U, const float *bias, int64_t activation,
                                  const float *residual, float *y, int64_t OH, int64_t OW,
                                  int64_t K) {
  Map map{x, gate, N, H, W, C};
  Tiles tiles(N, OH, OW);
  Ends ends{bias, residual, activation, is_streamed(y, N * OH * OW, K)};
  int64_t T = block_tiles(C, K), Cv = lanes_of(C), Kv = lanes_of(K);
  Pool::get().parallel(divide_up(tiles.count(), T), [=](int64_t job) {
    int64_t vs = tile_plane(T, Cv), ms = tile_plane(T, Kv);
    float *V = scratch(0, 36 * vs), *M = scratch(1, 36 * ms);
    int64_t first = job * T, count = least(T, tiles.count() - first);
    transform_block(map, tiles, pad_h, pad_w, first, count, V, vs);
    multiply(V, vs, U, M, ms, count, C, K);
    for (int64_t t = 0; t < count; t++) {
      int64_t at[4];
      tiles.rows(first + t, K, at);
      transform_output(M + t * Kv, ms, K, ends, y, at, OH - tiles.y(first + t), OW - tiles.x(first + t));
    }
    stream_fence();
  });
}

// y = x + conv(relu(conv(x) + bias1)) + bias2, 3×3 with padding 1 and C → hidden → C channels.
//
// A job is a part of the image. It goes down it in rows of tiles, and keeps the hidden map's last
// eight rows: a row of output tiles needs six of them.
EXPORT void denoise_winograd_residual(const float *x, int64_t N, int64_t H, int64_t W, int64_t C,
                                      int64_t hidden_channels, const float *U1, const float *bias1,
                                      const float *U2, const float *bias2, float *y) {
  int64_t D = hidden_channels, T = block_tiles(C, D), Cv = lanes_of(C), Dv = lanes_of(D);
  int64_t most_h = 64, most_w = (C + D >= 256 ? 2 : C + D >= 128 ? 3 : 8) * T * 4 - 4;
  int64_t high = divide_up(H, most_h), wide = divide_up(W, most_w);
  int64_t part_h = round_up(divide_up(H, high), 4);
  // The hidden map's tiles, one more than the output's, fill whole register tiles.
  int64_t part_w = 4 * round_up(divide_up(divide_up(W, wide), 4) + 1, 12) - 4;
  high = divide_up(H, part_h), wide = divide_up(W, part_w);
  Map map{x, nullptr, N, H, W, C};
  bool streams = is_streamed(y, N * H * W, C);
  Pool::get().parallel(N * high * wide, [=](int64_t job) {
    int64_t n = job / (high * wide), top = job / wide % high * part_h, left = job % wide * part_w;
    int64_t h = least(part_h, H - top), w = least(part_w, W - left);
    // Hidden pixel (r, q) belongs to image pixel (top − 1 + r, left − 1 + q); row r is kept as r % 8.
    int64_t tiles = divide_up(w, 4) + 1, pitch = tiles * 4, vs = tile_plane(T, most(Cv, Dv));
    float *V = scratch(0, 36 * vs), *M = scratch(1, 36 * vs), *hidden = scratch(2, 8 * pitch * D);
    for (int64_t ty = 0; ty <= divide_up(h, 4); ty++) {
      Rows rows = rows_of(map, n, top + 4 * ty - 2);
      for (int64_t t0 = 0; t0 < tiles; t0 += T) {
        int64_t count = least(T, tiles - t0);
        for (int64_t t = 0; t < count; t++)
          transform_data<false>(rows, left + 4 * (t0 + t) - 2, C, V + t * Cv, vs);
        multiply(V, vs, U1, M, vs, count, C, D);
        for (int64_t t = 0; t < count; t++) {
          int64_t at[4];
          for (int i = 0; i < 4; i++) at[i] = ((4 * ty + i) % 8 * pitch + 4 * (t0 + t)) * D;
          transform_output(M + t * Dv, vs, D, Ends{bias1, nullptr, 1, false}, hidden, at, 4, 4);
        }
      }
      if (ty == 0) continue;
      int64_t below = 4 * ty - 4;
      // Hidden pixels outside the image are padding.
      Rows inner{{}, {}, left == 0 ? 1 : 0, least(pitch, W - left + 1)};
      for (int i = 0; i < 6; i++) {
        int64_t row = top + below - 1 + i;
        if (row >= 0 && row < H) inner.data[i] = hidden + (below + i) % 8 * pitch * D;
      }
      for (int64_t t0 = 0; t0 < tiles - 1; t0 += T) {
        int64_t count = least(T, tiles - 1 - t0);
        for (int64_t t = 0; t < count; t++)
          transform_data<false>(inner, 4 * (t0 + t), D, V + t * Dv, vs);
        multiply(V, vs, U2, M, vs, count, D, C);
        for (int64_t t = 0; t < count; t++) {
          int64_t q = 4 * (t0 + t), at[4];
          for (int i = 0; i < 4; i++) at[i] = ((n * H + top + below + i) * W + left + q) * C;
          transform_output(M + t * Cv, vs, C, Ends{bias2, x, 0, streams}, y, at, h - below, w - q);
        }
      }
    }
    stream_fence();
  });
}

// dw (K, C, 3, 3) from dU, 36 planes of C × Kv.
static void transform_weights(const float *dU, int64_t C, int64_t K, float *dw) {
  int64_t Kv = lanes_of(K), us = plane(C, Kv);
  Pool::get().parallel(divide_up(C, 16), [=](int64_t job) {
    int64_t c0 = job * 16, rows = least(16, C - c0);
    float taps[VL][16 * 9];
    for (int64_t k = 0; k < K; k += VL) {
      for (int64_t c = 0; c < rows; c++) {
        vec u[36], half[18], w[9];
        for (int p = 0; p < 36; p++) u[p] = load(dU + p * us + (c0 + c) * Kv + k);
        for (int j = 0; j < 6; j++) winograd::weight_gradient(u + j, 6, half + j, 6);
        for (int i = 0; i < 3; i++) winograd::weight_gradient(half + i * 6, 1, w + i * 3, 1);
        for (int tap = 0; tap < 9; tap++)
          for (int lane = 0; lane < VL; lane++) taps[lane][c * 9 + tap] = w[tap][lane];
      }
      for (int64_t lane = 0; lane < least(VL, K - k); lane++)
        memcpy(dw + ((k + lane) * C + c0) * 9, taps[lane], rows * 9 * sizeof(float));
    }
  });
}

// The gradient of the weights: dU[p] = Σ V[p]ᵀ · M[p] over all tiles, then back to 3×3.
namespace {
struct Weights {
  Map map;
  Tiles tiles;
  int64_t pad_h, pad_w;
  const float *dy, *gate;
  int64_t K;

  // V and M of tiles; the sums of dy over their pixels are added to `sum`.
  void transform(int64_t first, int64_t count, float *V, int64_t vs, float *M, int64_t ms,
                 float *sum) const {
    transform_block(map, tiles, pad_h, pad_w, first, count, V, vs);
    for (int64_t t = 0; t < count; t++) {
      int64_t at[4], h = tiles.H - tiles.y(first + t), w = tiles.W - tiles.x(first + t);
      tiles.rows(first + t, K, at);
      if (gate) transform_gradient<true>(dy, gate, at, K, h, w, sum, M + t * lanes_of(K), ms);
      else transform_gradient<false>(dy, gate, at, K, h, w, sum, M + t * lanes_of(K), ms);
    }
  }
};
}  // namespace

// Few channels: dU stays in the L2 cache of a thread, beside V and M of a few tiles.
static void small_weights(const Weights &g, float *dw, double *totals) {
  int64_t C = g.map.C, K = g.K, Cv = lanes_of(C), Kv = lanes_of(K), total = g.tiles.count();
  int64_t us = plane(C, Kv);
  int64_t T = most(8, least(64, (PRIVATE_FLOATS - 36 * us) / (36 * (Cv + Kv)) / 8 * 8));
  // The parts do not depend on the number of threads, so neither do the sums.
  int64_t parts = least(PARTS, divide_up(total, T)), blocks = divide_up(total, T);
  int64_t size = 36 * us, vs = plane(T, Cv), ms = plane(T, Kv);
  float *dUs = scratch(2, parts * size);
  double *sums = (double *)scratch(3, 2 * parts * Kv);
  Pool::get().parallel(parts, [=, &g](int64_t part) {
    float *dU = dUs + part * size, *V = scratch(0, 36 * vs), *M = scratch(1, 36 * ms);
    float *sum = scratch(5, Kv);
    double *partial = sums + part * Kv;
    memset(partial, 0, Kv * sizeof(double));
    int64_t begin = blocks * part / parts;
    for (int64_t block = begin; block < blocks * (part + 1) / parts; block++) {
      int64_t first = block * T, count = least(T, total - first);
      memset(sum, 0, Kv * sizeof(float));
      g.transform(first, count, V, vs, M, ms, sum);
      for (int p = 0; p < 36; p++)
        outer_block(V + p * vs, Cv, 0, M + p * ms, Kv, 0, 1, count, C, Kv, dU + p * us, Kv,
                    block > begin);
      for (int64_t k = 0; k < K; k++) partial[k] += sum[k];
    }
  });
  for (int64_t part = 0; part < parts; part++)
    for (int64_t k = 0; k < K; k++) totals[k] += sums[part * Kv + k];
  Pool::get().parallel(36, [=](int64_t p) {
    for (int64_t at = p * us; at < p * us + C * Kv; at += VL) {
      vec value = load(dUs + at);
      for (int64_t part = 1; part < parts; part++) value += load(dUs + part * size + at);
      store(dUs + at, value);
    }
  });
  transform_weights(dUs, C, K, dw);
}

// Many channels: V and M of as many tiles as the L3 cache holds, then the threads share the products.
static void large_weights(const Weights &g, float *dw, double *totals) {
  constexpr int64_t T = 8;  // tiles of a job
  int64_t C = g.map.C, K = g.K, Cv = lanes_of(C), Kv = lanes_of(K), total = g.tiles.count();
  int64_t step = least(round_up(total, T), most(T, L3_FLOATS / (36 * (Cv + Kv)) / T * T));
  int64_t vs = plane(step, Cv), ms = plane(step, Kv), us = plane(C, Kv);
  float *V = scratch(0, 36 * vs), *M = scratch(1, 36 * ms), *dU = scratch(2, 36 * us);
  int64_t jobs = divide_up(step, T), row_blocks = divide_up(C, 64);
  float *sums = scratch(3, jobs * Kv);
  for (int64_t first = 0; first < total; first += step) {
    int64_t count = least(step, total - first);
    Pool::get().parallel(divide_up(count, T), [=, &g](int64_t job) {
      memset(sums + job * Kv, 0, Kv * sizeof(float));
      int64_t start = job * T;
      g.transform(first + start, least(T, count - start), V + start * Cv, vs, M + start * Kv, ms,
                  sums + job * Kv);
    });
    Pool::get().parallel(36 * row_blocks, [=](int64_t job) {
      int64_t p = job / row_blocks, c = job % row_blocks * 64;
      for (int64_t t = 0; t < count; t += OUTER_LENGTH)
        outer_block(V + p * vs + t * Cv + c, Cv, 0, M + p * ms + t * Kv, Kv, 0, 1,
                    least(OUTER_LENGTH, count - t), least(64, C - c), Kv, dU + p * us + c * Kv, Kv,
                    first + t > 0);
    });
    for (int64_t job = 0; job < divide_up(count, T); job++)
      for (int64_t k = 0; k < K; k++) totals[k] += sums[job * Kv + k];
  }
  transform_weights(dU, C, K, dw);
}

// dw (K, C, 3, 3) and db (K) of y = conv3×3(x) + b from the gradient dy (N, OH, OW, K), gated.
EXPORT void denoise_winograd_weights(const float *x, int64_t N, int64_t H, int64_t W, int64_t C,
                                     int64_t pad_h, int64_t pad_w, const float *dy,
                                     const float *gate, int64_t OH, int64_t OW, int64_t K,
                                     float *dw, float *db) {
  Weights gradient{{x, nullptr, N, H, W, C}, Tiles(N, OH, OW), pad_h, pad_w, dy, gate, K};
  double *totals = (double *)scratch(4, 2 * K);
  memset(totals, 0, K * sizeof(double));
  bool is_small = 36 * plane(C, lanes_of(K)) <= MOST_PRIVATE;
  (is_small ? small_weights : large_weights)(gradient, dw, totals);
  if (db)
    for (int64_t k = 0; k < K; k++) db[k] = (float)totals[k];
}
