// Moments of each image or episode, and 2×2 pooling, of channels-last activations in one pass.
//
// Batch normalization followed by max pooling reads its input four times and keeps two copies; its
// gradient and that gradient's gradient do worse. But pooling commutes with normalization: the
// largest of gain · x + shift is gain · (the largest x) + shift where gain ≥ 0, and of the smallest
// where it is not. So only moments and the pooled values are needed of the large activation, both
// in one pass, and everything else happens on a quarter of it. kernels.py has the formulas.
//
// Plain C functions on one thread each: the engine gives every core a task of its own.
// Shapes: x (n, h, w, c); moments (m, c), m = n for those of each image, m = 1 for those of the
// first `rows` images together; pooled and its choice (n, h/2, w/2, c).

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define CLONES
#endif
#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#define LONE __restrict__  // no other pointer of the loop reaches what this one does
#else
#define INLINE inline
#define LONE
#endif

namespace {

enum bf16 : uint16_t {};

INLINE float wide(bf16 v) {
  uint32_t bits = uint32_t(v) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
INLINE float wide(float v) { return v; }
INLINE double wide(double v) { return v; }

INLINE void narrow(float f, bf16& out) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out = bf16(f != f ? 0x7fc0 : rounded);
}
INLINE void narrow(float f, float& out) { out = f; }
INLINE void narrow(double f, double& out) { out = f; }

template <class T>
struct Sums {
  using type = float;
};
template <>
struct Sums<double> {
  using type = double;
};

struct Shape {
  int64_t n, h, w, c, rows;
  INLINE int64_t pixels() const { return h * w; }
  INLINE int64_t groups() const { return rows ? 1 : n; }
  INLINE int64_t counted() const { return rows ? rows : n; }
  INLINE int64_t group(int64_t i) const { return rows ? 0 : i; }
  INLINE double share() const { return 1.0 / (double(pixels()) * double(rows ? rows : 1)); }
};

// Which of a 2×2 window is the largest, or where `negative`, the smallest: the first of equals.
template <class T, class A>
INLINE void choose_window(int64_t c, const T* LONE a, const T* LONE b, const uint8_t* LONE negative,
                          T* LONE pooled, uint8_t* LONE choice) {
  for (int64_t k = 0; k < c; ++k) {
    const A sign = negative[k] ? A(-1) : A(1);
    const A v0 = sign * wide(a[k]), v1 = sign * wide(a[c + k]);
    const A v2 = sign * wide(b[k]), v3 = sign * wide(b[c + k]);
    A best = v0;
    uint8_t at = 0;
    bool more = v1 > best || v1 != v1;
    best = more ? v1 : best, at = more ? 1 : at;
    more = v2 > best || v2 != v2;
    best = more ? v2 : best, at = more ? 2 : at;
    more = v3 > best || v3 != v3;
    best = more ? v3 : best, at = more ? 3 : at;
    narrow(sign * best, pooled[k]);
    choice[k] = at;
  }
}

template <class T, class A>
INLINE void choose(const T* x, const Shape& s, const uint8_t* negative, T* pooled,
                   uint8_t* choice) {
  const int64_t c = s.c, line = s.w * c;
  for (int64_t y = 0; y < s.h / 2; ++y)
    for (int64_t z = 0; z < s.w / 2; ++z) {
      const T* a = x + 2 * y * line + 2 * z * c;
      choose_window<T, A>(c, a, a + line, negative, pooled, choice);
      pooled += c, choice += c;
    }
}

// Mean and variance of one image's channels; the sums of a row are added up before those of all.
template <class T, class A>
INLINE void moments(const T* x, const Shape& s, A* mean, A* variance, A* row) {
  const int64_t c = s.c;
  const A share = A(1.0 / double(s.pixels()));
  for (int64_t k = 0; k < c; ++k) mean[k] = variance[k] = 0;
  for (int64_t y = 0; y < s.h; ++y) {
    for (int64_t k = 0; k < c; ++k) row[k] = 0;
    for (int64_t z = 0; z < s.w; ++z)
#pragma GCC ivdep
      for (int64_t k = 0; k < c; ++k) row[k] += wide(x[(y * s.w + z) * c + k]);
    for (int64_t k = 0; k < c; ++k) mean[k] += row[k];
  }
  for (int64_t k = 0; k < c; ++k) mean[k] *= share;
  for (int64_t y = 0; y < s.h; ++y) {
    for (int64_t k = 0; k < c; ++k) row[k] = 0;
    for (int64_t z = 0; z < s.w; ++z)
#pragma GCC ivdep
      for (int64_t k = 0; k < c; ++k) {
        const A d = wide(x[(y * s.w + z) * c + k]) - mean[k];
        row[k] += d * d;
      }
    for (int64_t k = 0; k < c; ++k) variance[k] += row[k];
  }
  for (int64_t k = 0; k < c; ++k) variance[k] *= share;
}

template <class T, class A = typename Sums<T>::type>
INLINE void forward(const T* x, const uint8_t* negative, Shape s, A* mean, A* variance, T* pooled,
                    uint8_t* choice) {
  const int64_t c = s.c, quarter = (s.h / 2) * (s.w / 2) * c;
  std::vector<A> each(s.rows ? 2 * s.rows * c : 0), row(c);
  for (int64_t i = 0; i < s.n; ++i) {
    const T* image = x + i * s.pixels() * c;
    if (!s.rows)
      moments<T, A>(image, s, mean + i * c, variance + i * c, row.data());
    else if (i < s.rows)
      moments<T, A>(image, s, &each[2 * i * c], &each[(2 * i + 1) * c], row.data());
    choose<T, A>(image, s, negative, pooled + i * quarter, choice + i * quarter);
  }
  if (!s.rows) return;
  const A share = A(1.0 / double(s.rows));  // the law of total variance, for images of one size
  for (int64_t k = 0; k < c; ++k) mean[k] = variance[k] = 0;
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t k = 0; k < c; ++k) mean[k] += share * each[2 * i * c + k];
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t k = 0; k < c; ++k) {
      const A d = each[2 * i * c + k] - mean[k];
      variance[k] += share * (each[(2 * i + 1) * c + k] + d * d);
    }
}

// dx = offset + slope · x, and to_pooled where it was chosen.
template <class T, class A>
INLINE void backward_pair(int64_t c, const A* LONE offset, const A* LONE slope, const T* LONE x,
                          const T* LONE g, const uint8_t* LONE choice, uint8_t first, T* LONE dx) {
  for (int64_t k = 0; k < c; ++k) {
    const A given = wide(g[k]), left = choice[k] == first ? given : A(0);
    const A right = choice[k] == first + 1 ? given : A(0);
    narrow(offset[k] + slope[k] * wide(x[k]) + left, dx[k]);
    narrow(offset[k] + slope[k] * wide(x[c + k]) + right, dx[c + k]);
  }
}

template <class T, class A>
INLINE void backward_pixel(int64_t c, const A* LONE offset, const A* LONE slope, const T* LONE x,
                           T* LONE dx) {
  for (int64_t k = 0; k < c; ++k) narrow(offset[k] + slope[k] * wide(x[k]), dx[k]);
}

// dx = to_mean / P + 2 to_variance (x − mean) / P, and to_pooled where it was chosen.
template <class T, class A = typename Sums<T>::type>
INLINE void backward(const T* x, const A* mean, const uint8_t* choice, Shape s, const A* to_mean,
                     const A* to_variance, const T* to_pooled, T* dx) {
  const int64_t c = s.c, line = s.w * c;
  std::vector<A> offset(c), slope(c);
  const A share = A(s.share());
  for (int64_t i = 0; i < s.n; ++i) {
    const bool counts = !s.rows || i < s.rows;
    for (int64_t k = 0; k < c; ++k) {
      const int64_t at = s.group(i) * c + k;
      slope[k] = counts ? 2 * share * to_variance[at] : 0;
      offset[k] = counts ? share * to_mean[at] - slope[k] * mean[at] : 0;
    }
    const A *o = offset.data(), *m = slope.data();
    for (int64_t y = 0; y < s.h; ++y) {
      const uint8_t first = y % 2 ? 2 : 0;
      const bool pooled = y < s.h / 2 * 2;
      const int64_t from = (y / 2) * (s.w / 2) * c;
      for (int64_t z = 0; z < s.w; ++z) {
        const int64_t at = y * line + z * c, window = from + z / 2 * c;
        if (pooled && z + 1 < s.w && z % 2 == 0)
          backward_pair<T, A>(c, o, m, x + at, to_pooled + window, choice + window, first, dx + at),
              ++z;
        else  // a last row or column, in no window
          backward_pixel<T, A>(c, o, m, x + at, dx + at);
      }
    }
    x += s.h * line, dx += s.h * line;
    to_pooled += (s.h / 2) * (s.w / 2) * c, choice += (s.h / 2) * (s.w / 2) * c;
  }
}

template <class T, class A>
INLINE void twice_pixel(int64_t c, const A* LONE slope, const A* LONE mean, const T* LONE x,
                        const T* LONE v, T* LONE by_x, A* LONE sum, A* LONE product) {
  for (int64_t k = 0; k < c; ++k) {
    const A u = wide(v[k]);
    narrow(slope[k] * u, by_x[k]);
    sum[k] += u;
    product[k] += u * (wide(x[k]) - mean[k]);
  }
}

template <class T>
INLINE void take_window(int64_t c, const uint8_t* LONE choice, const T* LONE a, const T* LONE b,
                        T* LONE taken) {
  for (int64_t k = 0; k < c; ++k) {
    const T v0 = a[k], v1 = a[c + k], v2 = b[k], v3 = b[c + k];
    const T top = choice[k] == 0 ? v0 : v1, bottom = choice[k] == 2 ? v2 : v3;
    taken[k] = choice[k] < 2 ? top : bottom;
  }
}

// Of `backward` by all it reads, for v by its dx: the vector-Jacobian product.
template <class T, class A = typename Sums<T>::type>
INLINE void twice(const T* x, const A* mean, const uint8_t* choice, Shape s, const A* to_variance,
                  const T* v, T* by_x, A* by_mean, A* by_to_mean, A* by_to_variance,
                  T* by_to_pooled) {
  const int64_t c = s.c, line = s.w * c;
  std::vector<A> scratch(5 * c);
  A *slope = &scratch[0], *sum = slope + c, *product = sum + c, *rs = product + c, *rp = rs + c;
  const A share = A(s.share());
  for (int64_t k = 0; k < s.groups() * c; ++k) by_mean[k] = by_to_mean[k] = by_to_variance[k] = 0;
  for (int64_t i = 0; i < s.n; ++i) {
    const bool counts = !s.rows || i < s.rows;
    const int64_t first = s.group(i) * c;
    for (int64_t k = 0; k < c; ++k) {
      slope[k] = counts ? 2 * share * to_variance[first + k] : 0;
      sum[k] = product[k] = 0;
    }
    for (int64_t y = 0; y < s.h; ++y) {
      for (int64_t k = 0; k < c; ++k) rs[k] = rp[k] = 0;
      for (int64_t z = 0; z < s.w; ++z) {
        const int64_t at = y * line + z * c;
        twice_pixel<T, A>(c, slope, mean + first, x + at, v + at, by_x + at, rs, rp);
      }
      for (int64_t k = 0; k < c; ++k) sum[k] += rs[k], product[k] += rp[k];
    }
    for (int64_t y = 0; y < s.h / 2; ++y)
      for (int64_t z = 0; z < s.w / 2; ++z) {
        const T* a = v + 2 * y * line + 2 * z * c;
        take_window<T>(c, choice, a, a + line, by_to_pooled);
        choice += c, by_to_pooled += c;
      }
    if (counts)
      for (int64_t k = 0; k < c; ++k) {
        by_mean[first + k] -= slope[k] * sum[k];
        by_to_mean[first + k] += share * sum[k];
        by_to_variance[first + k] += 2 * share * product[k];
      }
    x += s.h * line, v += s.h * line, by_x += s.h * line;
  }
}

}  // namespace

#define KERNELS(T, A, name)                                                                       \
  extern "C" CLONES void hidra_forward_##name(                                                    \
      const void* x, const void* negative, int64_t n, int64_t h, int64_t w, int64_t c,            \
      int64_t rows, void* mean, void* variance, void* pooled, void* choice) {                     \
    forward<T>((const T*)x, (const uint8_t*)negative, {n, h, w, c, rows}, (A*)mean, (A*)variance, \
               (T*)pooled, (uint8_t*)choice);                                                     \
  }                                                                                               \
  extern "C" CLONES void hidra_backward_##name(                                                   \
      const void* x, const void* mean, const void* choice, int64_t n, int64_t h, int64_t w,       \
      int64_t c, int64_t rows, const void* to_mean, const void* to_variance,                      \
      const void* to_pooled, void* dx) {                                                          \
    backward<T>((const T*)x, (const A*)mean, (const uint8_t*)choice, {n, h, w, c, rows},          \
                (const A*)to_mean, (const A*)to_variance, (const T*)to_pooled, (T*)dx);           \
  }                                                                                               \
  extern "C" CLONES void hidra_twice_##name(                                                      \
      const void* x, const void* mean, const void* choice, int64_t n, int64_t h, int64_t w,       \
      int64_t c, int64_t rows, const void* to_variance, const void* v, void* by_x,                \
      void* by_mean, void* by_to_mean, void* by_to_variance, void* by_to_pooled) {                \
    twice<T>((const T*)x, (const A*)mean, (const uint8_t*)choice, {n, h, w, c, rows},             \
             (const A*)to_variance, (const T*)v, (T*)by_x, (A*)by_mean, (A*)by_to_mean,           \
             (A*)by_to_variance, (T*)by_to_pooled);                                               \
  }

KERNELS(float, float, float32)
KERNELS(double, double, float64)
KERNELS(bf16, float, bfloat16)
