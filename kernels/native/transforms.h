// The one-dimensional transforms of Winograd's F(4, 3): 4 outputs of a 3-tap filter from 6 products.
//
// y = Aᵀ[(G w) ⊙ (Bᵀ d)] (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016)
// at the points 0, ±a, ±b, ∞ with a = 3/4, b = 3/2, which round three times less than 0, ±1, ±2, ∞
// (Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution", 2020). The
// transposed transforms give the gradient of the weights: dw = Gᵀ[(Bᵀ d) ⊙ (A dy)].
//
// Every function reads values `s` apart and writes values `t` apart.
#pragma once
#include "simd.h"

namespace winograd {

constexpr float a = 0.75f, b = 1.5f;
constexpr float a2 = a * a, a3 = a2 * a, b2 = b * b, b3 = b2 * b;
// 1 / Π (point − other point), of the points 0, ±a, ±b.
constexpr float g0 = 1 / (a2 * b2), ga = 1 / (2 * a2 * (a2 - b2)), gb = 1 / (2 * b2 * (b2 - a2));

// Bᵀ d, 6 → 6; t may be s and out d.
static INLINE void data(const vec *d, int s, vec *out, int t) {
  vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
  vec even_a = d4 - b2 * d2, odd_a = a * (d3 - b2 * d1);
  vec even_b = d4 - a2 * d2, odd_b = b * (d3 - a2 * d1);
  out[0] = a2 * b2 * d0 - (a2 + b2) * d2 + d4;
  out[t] = even_a + odd_a;
  out[2 * t] = even_a - odd_a;
  out[3 * t] = even_b + odd_b;
  out[4 * t] = even_b - odd_b;
  out[5 * t] = a2 * b2 * d1 - (a2 + b2) * d3 + d5;
}

// Aᵀ m, 6 → 4.
static INLINE void output(const vec *m, int s, vec *y, int t) {
  vec sum_a = m[s] + m[2 * s], difference_a = m[s] - m[2 * s];
  vec sum_b = m[3 * s] + m[4 * s], difference_b = m[3 * s] - m[4 * s];
  y[0] = m[0] + sum_a + sum_b;
  y[t] = a * difference_a + b * difference_b;
  y[2 * t] = a2 * sum_a + b2 * sum_b;
  y[3 * t] = a3 * difference_a + b3 * difference_b + m[5 * s];
}

// A dy, 4 → 6.
static INLINE void output_gradient(const vec *y, int s, vec *m, int t) {
  vec even_a = y[0] + a2 * y[2 * s], odd_a = a * y[s] + a3 * y[3 * s];
  vec even_b = y[0] + b2 * y[2 * s], odd_b = b * y[s] + b3 * y[3 * s];
  m[0] = y[0];
  m[t] = even_a + odd_a;
  m[2 * t] = even_a - odd_a;
  m[3 * t] = even_b + odd_b;
  m[4 * t] = even_b - odd_b;
  m[5 * t] = y[3 * s];
}

// G w, 3 → 6.
static INLINE void weight(const vec *w, int s, vec *u, int t) {
  vec even_a = ga * (w[0] + a2 * w[2 * s]), odd_a = ga * a * w[s];
  vec even_b = gb * (w[0] + b2 * w[2 * s]), odd_b = gb * b * w[s];
  u[0] = g0 * w[0];
  u[t] = even_a + odd_a;
  u[2 * t] = even_a - odd_a;
  u[3 * t] = even_b + odd_b;
  u[4 * t] = even_b - odd_b;
  u[5 * t] = w[2 * s];
}

// Gᵀ du, 6 → 3.
static INLINE void weight_gradient(const vec *u, int s, vec *w, int t) {
  vec sum_a = ga * (u[s] + u[2 * s]), difference_a = ga * (u[s] - u[2 * s]);
  vec sum_b = gb * (u[3 * s] + u[4 * s]), difference_b = gb * (u[3 * s] - u[4 * s]);
  w[0] = g0 * u[0] + sum_a + sum_b;
  w[t] = a * difference_a + b * difference_b;
  w[2 * t] = a2 * sum_a + b2 * sum_b + u[5 * s];
}

}  // namespace winograd
