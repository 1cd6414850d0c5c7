// Small networks trained one trial after another, a slice of an epoch per call.
//
//   B  rows of a batch            k  side of a layer's kernel
//   H, W  of a layer's image      C, O  its channels in and out
//   R  = B·H·W, positions         P  numbers of a trial's weights
//
// A small network's weights, gradients and optimizer state fit a core's own caches. So the lanes of a
// group are not stacked: each trial takes all its steps at once, at its own width, and nothing is
// dispatched, allocated or padded in between. Arithmetic follows PyTorch's formulas; sums differ in
// order.
//
// A network is a chain of layers, after recurrent ones perhaps (recurrent.h), each: convolution → normalisation → activation → dropout → 2×2 max
// pooling, all but the first optional. A linear layer is a convolution with k = 1 on one position.
//
// Images lie as [B, H, W, C], framed with k/2 zeros on each side, so that a kernel's row is one run of
// memory and no layer needs its patches copied out. A weight is [k, k, C, stride(O)] (PyTorch's
// transposed), a bias [stride(O)]: rows meet whole vector registers. Columns from O to stride(O) are
// zero, and every optimizer leaves them zero. Where each tensor stands is layout.py's business.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

using i64 = std::int64_t;
using u32 = std::uint32_t;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif

// Not inlined: in one large function the compiler runs out of registers for the innermost loops, and
// everything takes a fifth longer.
#define KERNEL __attribute__((noinline))

template <typename T> struct Vector;
template <> struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes), aligned(4)));
};
template <> struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes), aligned(8)));
};
template <typename T> using Vec = typename Vector<T>::type;
template <typename T> constexpr i64 kWidth = kVectorBytes / sizeof(T);

template <typename T> inline const Vec<T> &vec(const T *p) {
  return *reinterpret_cast<const Vec<T> *>(p);
}
template <typename T> inline Vec<T> &vec(T *p) { return *reinterpret_cast<Vec<T> *>(p); }

// ---------------------------------------------------------------------------------- the interface

enum Activation { kRelu, kLeakyRelu, kElu, kGelu, kSilu, kTanh, kSigmoid };
enum Loss { kCrossEntropy, kBinaryCrossEntropy, kMse, kMae, kHuber };
// adamw is adam with shrink < 1 and no l2
enum Kind { kSgd, kNesterov, kAdagrad, kRmsprop, kAdam, kAdamax, kAdadelta, kNadam, kRadam, kLion };
enum Norm { kNone, kBatch, kLayerwise };

constexpr i64 kMostLayers = 64;

// In numbers from the start of the flat weights: weight, bias, scale (of the norm; its shift follows
// at + stride). In numbers from the start of the statistics: stats (mean; variance at + stride).
struct Layer {
  i64 channels;  // C, as far as the weight goes
  i64 pitch;     // numbers from one position of the input image to the next
  i64 outputs, stride, kernel, height, width;
  i64 norm, pooled, dropped;  // dropped: number of the dropout layer, or -1
  i64 weight, bias, scale, stats;
};

struct Optimizer {
  i64 kind;
  double l2, momentum, beta2, eps, beta1;  // beta2 is alpha for rmsprop, rho for adadelta
};

struct Cells;  // recurrent.h: one direction of a recurrent layer, before the layers

template <typename T> struct Trial {
  const Layer *layers;
  i64 count, activation, size;  // size: P
  const Cells *cells;
  i64 cell_count;
  Optimizer optimizer;
  T *weights, *average, *square;        // [P]
  T *statistics;                        // of batch normalisation
  double dropout, smoothing, l1, clip;  // clip < 0: none
  i64 seed, steps;                      // steps taken before this call
};

template <typename T> struct Slice {
  const T *rows;        // [n, H·W·C], channels last
  const void *targets;  // [n] int64 classes, or [n, O]
  const i64 *order;     // [rows]
  const double *coefficients;  // [steps, 3]: what changes from step to step (optim/fused.py)
  i64 rows_in_slice, batch, loss;
};

// -------------------------------------------------------------------------------- random numbers
// The same words as randomness.py.

inline u32 mix(u32 x) {
  x ^= x >> 16;
  x *= 0x21F0AAADu;
  x ^= x >> 15;
  x *= 0x735A2D97u;
  return x ^ (x >> 15);
}

constexpr u32 kGolden = 0x61C88647u;
constexpr u32 kMaskDomain = 2;

inline u32 layer_key(i64 seed, i64 step, u32 salt) {
  const u32 high = mix(static_cast<u32>(seed >> 32) + kMaskDomain + (salt << 8));
  return mix(static_cast<u32>(step) + mix(static_cast<u32>(seed) ^ high));
}

// The word at a position of the stream with keys (first, second).
inline u32 word(u32 first, u32 second, u32 position) {
  u32 x = position ^ first;
  x ^= x >> 16;
  x = x * 0x21F0AAADu + second;
  x ^= x >> 15;
  x *= 0x735A2D97u;
  return x ^ (x >> 15);
}

// ------------------------------------------------------------------------------------- products

inline i64 round_up(i64 size, i64 unit) { return (size + unit - 1) / unit * unit; }

// Numbers from one row of a matrix of `columns` to the next. A large power of two would map a column
// of the matrix onto a few sets of the cache, so that walking down it would evict itself.
template <typename T> inline i64 stride_of(i64 columns) {
  const i64 padded = round_up(columns, kWidth<T>);
  const i64 line = 64 / sizeof(T);
  return padded * sizeof(T) % 512 == 0 ? padded + line : padded;
}

// Where the rows of a batch of framed images are: position q of image b at b·image + (q / width)·line
// + (q % width)·pitch; a kernel's rows are `line` apart.
struct Grid {
  i64 positions, width, image, line, pitch;
};

Grid grid_of(const Layer &layer, i64 pitch) {
  const i64 frame = layer.kernel / 2 * 2, line = (layer.width + frame) * pitch;
  return {layer.height * layer.width, layer.width, (layer.height + frame) * line, line, pitch};
}

// A batch of single positions is one image with a line of them: no loops of one turn inside.
struct Rows {
  i64 images;
  Grid grid;

  Rows(i64 many, const Grid &of) : images(many), grid(of) {
    if (of.positions == 1) {
      grid = {many, many, 0, of.line, of.image};
      images = 1;
    }
  }
};

// Rows r of C[MR, NV vectors] = bias_r + sum over i < taps, j < run of A_r[i·line + j]·B[i·run + j, …].
template <typename T, int MR, int NV>
inline void tile(const T *const *A, i64 taps, i64 line, i64 run, const T *B, i64 ldb, T *C, i64 ldc,
                 const T *bias, i64 bias_step) {
  const T *a[MR];
  Vec<T> sum[MR][NV];
  for (int r = 0; r < MR; ++r) {
    a[r] = A[r];
    for (int v = 0; v < NV; ++v) sum[r][v] = bias ? vec(bias + r * bias_step + v * kWidth<T>) : Vec<T>{};
  }
  for (i64 i = 0; i < taps; ++i) {
    for (i64 j = 0; j < run; ++j, B += ldb) {
      Vec<T> b[NV];
      for (int v = 0; v < NV; ++v) b[v] = vec(B + v * kWidth<T>);
      for (int r = 0; r < MR; ++r) {
        const T factor = a[r][j];
        for (int v = 0; v < NV; ++v) sum[r][v] += factor * b[v];
      }
    }
    for (int r = 0; r < MR; ++r) a[r] += line;
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) vec(C + r * ldc + v * kWidth<T>) = sum[r][v];
}

// A tile's sums, its vectors of B and a factor of A fill the registers: 24 + 3 + 1 of 32, or 12 + 2 + 1
// of 16. Eight rows divide the usual batches.
constexpr int kRows = kVectorBytes == 64 ? 8 : 6;
constexpr int kColumns = kVectorBytes == 64 ? 3 : 2;

// Vectors of the next tile of `left`: a lone one at the end would have too few sums to keep busy.
constexpr i64 tile_columns(i64 left) {
  return left >= kColumns && left != kColumns + 1 ? kColumns : std::min<i64>(left, 2);
}

// body(count) with the count, 1 to Most, as a constant; nothing for 0.
template <int Most, typename Body> inline void with_constant(i64 count, const Body &body) {
  if (count == Most) return body(std::integral_constant<int, Most>{});
  if constexpr (Most > 1) with_constant<Most - 1>(count, body);
}

template <typename T, int NV>
inline void column(i64 images, const Grid &grid, i64 taps, i64 run, const T *A, const T *B, i64 ldb,
                   T *C, i64 ldc, const T *bias, i64 bias_step) {
  const T *rows[kRows];
  int held = 0;
  const auto flush = [&] {
    with_constant<kRows>(held, [&](auto count) {
      tile<T, count, NV>(rows, taps, grid.line, run, B, ldb, C, ldc, bias, bias_step);
    });
    C += held * ldc;
    if (bias) bias += held * bias_step;
    held = 0;
  };
  for (i64 image = 0; image < images; ++image, A += grid.image)
    for (i64 y = 0; y * grid.width < grid.positions; ++y)
      for (i64 x = 0; x < grid.width; ++x) {
        rows[held++] = A + y * grid.line + x * grid.pitch;
        if (held == kRows) flush();
      }
  flush();
}

// C[R, N] = bias[N] + A·B, with `bias_step` bias[R, N]: each position's patch of k runs by B [k·run, N]. All of C's columns up to
// whole registers are written; they are zero where B's and the bias's are.
template <typename T>
KERNEL void patches(i64 many, const Grid &of, i64 taps, i64 run, i64 N, const T *A, const T *B,
                    i64 ldb, T *C, i64 ldc, const T *bias, i64 bias_step = 0) {
  const Rows all(many, of);
  i64 vectors = 0;
  for (i64 left = round_up(N, kWidth<T>) / kWidth<T>; left > 0; left -= vectors) {
    vectors = tile_columns(left);
    with_constant<kColumns>(vectors, [&](auto count) {
      column<T, count>(all.images, all.grid, taps, run, A, B, ldb, C, ldc, bias, bias_step);
    });
    B += vectors * kWidth<T>;
    C += vectors * kWidth<T>;
    if (bias) bias += vectors * kWidth<T>;
  }
}

// C[MR, NV vectors] = sum over images and positions of A[…, r]·E[…, …].
template <typename T, int MR, int NV>
inline void outer(i64 images, const Grid &in, const Grid &out, const T *A, const T *E, T *C, i64 ldc,
                  bool add) {
  Vec<T> sum[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) sum[r][v] = add ? vec(C + r * ldc + v * kWidth<T>) : Vec<T>{};
  for (i64 image = 0; image < images; ++image, A += in.image, E += out.image)
    for (i64 y = 0; y * in.width < in.positions; ++y) {
      const T *a = A + y * in.line, *e = E + y * out.line;
      for (i64 x = 0; x < in.width; ++x, a += in.pitch, e += out.pitch) {
        Vec<T> b[NV];
        for (int v = 0; v < NV; ++v) b[v] = vec(e + v * kWidth<T>);
        for (int r = 0; r < MR; ++r)
          for (int v = 0; v < NV; ++v) sum[r][v] += a[r] * b[v];
      }
    }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) vec(C + r * ldc + v * kWidth<T>) = sum[r][v];
}

template <typename T, int MR>
inline void outer_row(i64 N, i64 images, const Grid &in, const Grid &out, const T *A, const T *E, T *C,
                      i64 ldc, bool add) {
  i64 vectors = 0;
  for (i64 left = round_up(N, kWidth<T>) / kWidth<T>; left > 0; left -= vectors) {
    vectors = tile_columns(left);
    with_constant<kColumns>(vectors, [&](auto count) {
      outer<T, MR, count>(images, in, out, A, E, C, ldc, add);
    });
    E += vectors * kWidth<T>;
    C += vectors * kWidth<T>;
  }
}

// C[M, N] = (with `add`, +=) sum over positions of the patch's numbers A[0 … M) by the error's E[0 … N).
template <typename T>
KERNEL void outer_products(i64 M, i64 N, i64 many, const Grid &from, const Grid &to, const T *A,
                           const T *E, T *C, i64 ldc, bool add = false) {
  const Rows in(many, from), out(many, to);
  for (i64 m = 0; m < M; m += kRows, A += kRows, C += kRows * ldc)
    with_constant<kRows>(std::min<i64>(M - m, kRows), [&](auto count) {
      outer_row<T, count>(N, in.images, in.grid, out.grid, A, E, C, ldc, add);
    });
}

constexpr i64 kBlock = 8;

// to[8, 8] = from[8, 8], transposed.
template <typename T> inline void block(const T *from, i64 from_stride, T *to, i64 to_stride) {
  for (i64 o = 0; o < kBlock; ++o)
    for (i64 c = 0; c < kBlock; ++c) to[o * to_stride + c] = from[c * from_stride + o];
}

#if defined(__AVX__)
template <> inline void block(const float *from, i64 from_stride, float *to, i64 to_stride) {
  __m256 row[8], pair[8], four[8];
  for (int c = 0; c < 8; ++c) row[c] = _mm256_loadu_ps(from + c * from_stride);
  for (int c = 0; c < 8; c += 2) {
    pair[c] = _mm256_unpacklo_ps(row[c], row[c + 1]);
    pair[c + 1] = _mm256_unpackhi_ps(row[c], row[c + 1]);
  }
  for (int c = 0; c < 8; c += 4)
    for (int half = 0; half < 2; ++half) {
      four[c + 2 * half] = _mm256_shuffle_ps(pair[c + half], pair[c + 2 + half], 0x44);
      four[c + 2 * half + 1] = _mm256_shuffle_ps(pair[c + half], pair[c + 2 + half], 0xEE);
    }
  for (int o = 0; o < 4; ++o) {
    _mm256_storeu_ps(to + o * to_stride, _mm256_permute2f128_ps(four[o], four[o + 4], 0x20));
    _mm256_storeu_ps(to + (o + 4) * to_stride, _mm256_permute2f128_ps(four[o], four[o + 4], 0x31));
  }
}
#endif

// to[k, k, O, C] = from[k, k, C, O], turned by half a circle: what takes errors back through a layer.
template <typename T> void turn(const Layer &layer, i64 depth, const T *from, T *to, i64 to_stride) {
  const i64 taps = layer.kernel * layer.kernel, rows = layer.kernel == 1 ? layer.outputs : layer.stride;
  const i64 whole = layer.channels / kBlock * kBlock;
  // Whole blocks as far as a row reaches: its columns from O on are zero, and become rows of zeros.
  const i64 blocks = std::min(round_up(layer.outputs, kBlock), layer.stride / kBlock * kBlock);
  for (i64 tap = 0; tap < taps; ++tap) {
    const T *source = from + (taps - 1 - tap) * depth * layer.stride;
    T *target = to + tap * rows * to_stride;
    for (i64 o = 0; o < blocks; o += kBlock)
      for (i64 c = 0; c < whole; c += kBlock)
        block<T>(source + c * layer.stride + o, layer.stride, target + o * to_stride + c, to_stride);
    for (i64 o = 0; o < layer.outputs; ++o)
      for (i64 c = o < blocks ? whole : 0; c < layer.channels; ++c)
        target[o * to_stride + c] = source[c * layer.stride + o];
  }
}

// ------------------------------------------------------------------------------------- activations

template <typename T> inline T sigmoid(T z) { return T(1) / (T(1) + std::exp(-z)); }

// a = activation(z) in place; slope = its derivative at z.
template <typename T> void activate(i64 kind, i64 size, T *z, T *slope) {
  switch (kind) {
    case kRelu:
      for (i64 i = 0; i < size; ++i) {
        slope[i] = z[i] <= T(0) ? T(0) : T(1);
        z[i] = z[i] < T(0) ? T(0) : z[i];  // NaN stays NaN
      }
      return;
    case kLeakyRelu:
      for (i64 i = 0; i < size; ++i) {
        slope[i] = z[i] > T(0) ? T(1) : T(0.01);
        z[i] *= slope[i];
      }
      return;
    case kElu:
      for (i64 i = 0; i < size; ++i) {
        slope[i] = z[i] > T(0) ? T(1) : std::exp(z[i]);
        z[i] = z[i] > T(0) ? z[i] : std::expm1(z[i]);
      }
      return;
    case kGelu:
      for (i64 i = 0; i < size; ++i) {
        const T phi = T(0.5) * (T(1) + std::erf(z[i] * T(0.70710678118654752440)));
        slope[i] = phi + z[i] * std::exp(T(-0.5) * z[i] * z[i]) * T(0.39894228040143267794);
        z[i] *= phi;
      }
      return;
    case kSilu:
      for (i64 i = 0; i < size; ++i) {
        const T s = sigmoid(z[i]);
        slope[i] = s * (T(1) + z[i] * (T(1) - s));
        z[i] *= s;
      }
      return;
    case kTanh:
      for (i64 i = 0; i < size; ++i) {
        z[i] = std::tanh(z[i]);
        slope[i] = T(1) - z[i] * z[i];
      }
      return;
    default:
      for (i64 i = 0; i < size; ++i) {
        z[i] = sigmoid(z[i]);
        slope[i] = z[i] * (T(1) - z[i]);
      }
  }
}

// Drop units of a [rows, layer.outputs], and their slopes with them.
template <typename T>
void drop(const Trial<T> &trial, const Layer &layer, i64 step, i64 rows, T *a, T *slope) {
  const u32 key = layer_key(trial.seed, step, static_cast<u32>(layer.dropped));
  const u32 second = mix(key ^ kGolden);
  const u32 threshold = static_cast<u32>(trial.dropout * 4294967296.0);
  const T scale = static_cast<T>(1.0 / (1.0 - trial.dropout));
  for (i64 r = 0; r < rows; ++r, a += layer.stride, slope += layer.stride) {
    const u32 first = mix(static_cast<u32>(r) * kGolden + key);
    for (i64 c = 0; c < layer.outputs; ++c) {
      const u32 x = word(first, second, static_cast<u32>(c));
      // A select, not a product: what is dropped is zero even where it was infinite.
      a[c] = x >= threshold ? a[c] * scale : T(0);
      slope[c] = x >= threshold ? slope[c] * scale : T(0);
    }
  }
}

// ----------------------------------------------------------------------------------- normalisation

constexpr double kNormEps = 1e-5, kNormMomentum = 0.1;  // torch's

// What a layer's normalisation keeps for its way back: x̂ [R, stride] and 1/σ, per channel or row; and
// room for two sums per channel.
template <typename T> struct Normal {
  T *standard, *inverse;
  double *sums, *products;
};

template <typename T>
void scale_and_shift(const Trial<T> &trial, const Layer &layer, i64 R, const T *standard, T *z) {
  const T *scale = trial.weights + layer.scale, *shift = scale + layer.stride;
  for (i64 r = 0; r < R; ++r)
    for (i64 c = 0; c < layer.outputs; ++c)
      z[r * layer.stride + c] = standard[r * layer.stride + c] * scale[c] + shift[c];
}

// Means and variances of the channels of z [R, O], by two passes along the rows.
template <typename T>
void moments(const Layer &layer, i64 R, const T *z, double *mean, double *variance) {
  std::fill_n(mean, layer.outputs, 0.0);
  std::fill_n(variance, layer.outputs, 0.0);
  for (i64 r = 0; r < R; ++r)
    for (i64 c = 0; c < layer.outputs; ++c) mean[c] += z[r * layer.stride + c];
  for (i64 c = 0; c < layer.outputs; ++c) mean[c] /= static_cast<double>(R);
  for (i64 r = 0; r < R; ++r)
    for (i64 c = 0; c < layer.outputs; ++c) {
      const double off = z[r * layer.stride + c] - mean[c];
      variance[c] += off * off;
    }
  for (i64 c = 0; c < layer.outputs; ++c) variance[c] /= static_cast<double>(R);
}

// z [R, O] by the statistics of each channel: the batch's, or the running ones.
template <typename T>
void normalise_batch(const Trial<T> &trial, const Layer &layer, i64 R, bool training, T *z,
                     const Normal<T> &kept) {
  T *running_mean = trial.statistics + layer.stats, *running_var = running_mean + layer.stride;
  double *mean = kept.sums, *variance = kept.products;
  if (training && R > 1) {  // one value has no variance: networks.py's BatchNorm
    moments<T>(layer, R, z, mean, variance);
    const double unbiased = static_cast<double>(R) / static_cast<double>(R - 1);
    for (i64 c = 0; c < layer.outputs; ++c) {
      running_mean[c] += static_cast<T>(kNormMomentum * (mean[c] - running_mean[c]));
      running_var[c] += static_cast<T>(kNormMomentum * (variance[c] * unbiased - running_var[c]));
    }
  } else {
    std::copy_n(running_mean, layer.outputs, mean);
    std::copy_n(running_var, layer.outputs, variance);
  }
  for (i64 c = 0; c < layer.outputs; ++c)
    kept.inverse[c] = static_cast<T>(1.0 / std::sqrt(variance[c] + kNormEps));
  for (i64 r = 0; r < R; ++r)
    for (i64 c = 0; c < layer.outputs; ++c)
      kept.standard[r * layer.stride + c] =
          (z[r * layer.stride + c] - static_cast<T>(mean[c])) * kept.inverse[c];
  scale_and_shift<T>(trial, layer, R, kept.standard, z);
}

// z [R, O] by the statistics of each row.
template <typename T>
void normalise_rows(const Trial<T> &trial, const Layer &layer, i64 R, T *z, const Normal<T> &kept) {
  const double O = static_cast<double>(layer.outputs);
  for (i64 r = 0; r < R; ++r) {
    const T *x = z + r * layer.stride;
    double mean = 0.0, variance = 0.0;
    for (i64 c = 0; c < layer.outputs; ++c) mean += x[c];
    mean /= O;
    for (i64 c = 0; c < layer.outputs; ++c) variance += (x[c] - mean) * (x[c] - mean);
    const double inverse = 1.0 / std::sqrt(variance / O + kNormEps);
    kept.inverse[r] = static_cast<T>(inverse);
    for (i64 c = 0; c < layer.outputs; ++c)
      kept.standard[r * layer.stride + c] = static_cast<T>((x[c] - mean) * inverse);
  }
  scale_and_shift<T>(trial, layer, R, kept.standard, z);
}

// d = gradient by z from the gradient by the normalised z, in place; gradients of scale and shift on
// the way.
template <typename T>
void unnormalise_batch(const Trial<T> &trial, const Layer &layer, i64 R, T *d, const Normal<T> &kept,
                       T *gradient) {
  const T *scale = trial.weights + layer.scale;
  T *scales = gradient + layer.scale, *shifts = scales + layer.stride;
  std::fill_n(kept.sums, layer.outputs, 0.0);
  std::fill_n(kept.products, layer.outputs, 0.0);
  for (i64 r = 0; r < R; ++r)
    for (i64 c = 0; c < layer.outputs; ++c) {
      const double g = d[r * layer.stride + c];
      kept.sums[c] += g;
      kept.products[c] += g * kept.standard[r * layer.stride + c];
    }
  const double share = R > 1 ? 1.0 / static_cast<double>(R) : 0.0;  // running ones: constants
  for (i64 c = 0; c < layer.outputs; ++c) {
    scales[c] = static_cast<T>(kept.products[c]);
    shifts[c] = static_cast<T>(kept.sums[c]);
  }
  for (i64 r = 0; r < R; ++r)
    for (i64 c = 0; c < layer.outputs; ++c) {
      T &g = d[r * layer.stride + c];
      const double off = kept.sums[c] + kept.standard[r * layer.stride + c] * kept.products[c];
      g = static_cast<T>(static_cast<double>(scale[c]) * kept.inverse[c] * (g - share * off));
    }
}

template <typename T>
void unnormalise_rows(const Trial<T> &trial, const Layer &layer, i64 R, T *d, const Normal<T> &kept,
                      T *gradient) {
  const T *scale = trial.weights + layer.scale;
  T *scales = gradient + layer.scale, *shifts = scales + layer.stride;
  const double O = static_cast<double>(layer.outputs);
  for (i64 r = 0; r < R; ++r) {
    T *g = d + r * layer.stride;
    const T *x = kept.standard + r * layer.stride;
    double sum = 0.0, product = 0.0;
    for (i64 c = 0; c < layer.outputs; ++c) {
      scales[c] += g[c] * x[c];
      shifts[c] += g[c];
      const double scaled = static_cast<double>(g[c]) * scale[c];
      sum += scaled;
      product += scaled * x[c];
    }
    for (i64 c = 0; c < layer.outputs; ++c)
      g[c] = static_cast<T>(kept.inverse[r] * (g[c] * scale[c] - sum / O - x[c] * product / O));
  }
}

// --------------------------------------------------------------------------------------- pooling

template <typename T> inline T larger(T one, T other) {
  return other > one || other != other ? other : one;  // NaN wins, as in torch
}

// to (framed, [B, H/2, W/2]) = the largest of each 2×2 of a [B, H, W].
template <typename T>
void pool(const Layer &layer, i64 images, const T *a, T *to, const Grid &next) {
  const i64 high = layer.height / 2, wide = layer.width / 2, below = layer.width * layer.stride;
  for (i64 image = 0; image < images; ++image)
    for (i64 y = 0; y < high; ++y)
      for (i64 x = 0; x < wide; ++x) {
        const i64 at = (image * layer.height + 2 * y) * layer.width + 2 * x;
        const T *__restrict one = a + at * layer.stride, *__restrict two = one + layer.stride;
        const T *__restrict three = one + below, *__restrict four = three + layer.stride;
        T *__restrict out = to + image * next.image + y * next.line + x * next.pitch;
        for (i64 c = 0; c < layer.outputs; ++c)
          out[c] = larger(larger(larger(one[c], two[c]), three[c]), four[c]);
      }
}

// Of one 2×2: the pooled gradient d times the slope where the first of the largest stood, else zero.
template <typename T>
inline void spread(i64 columns, i64 right, i64 below, const T *__restrict d, const T *__restrict a,
                   const T *__restrict slope, T *__restrict dz) {
  const i64 corner = below + right;
  for (i64 c = 0; c < columns; ++c) {
    const T one = a[c], two = a[right + c], three = a[below + c], four = a[corner + c];
    const T best = larger(larger(larger(one, two), three), four);
    const T first = one == best ? d[c] : T(0), after_first = d[c] - first;
    const T second = two == best ? after_first : T(0), after_second = after_first - second;
    const T third = three == best ? after_second : T(0);
    const T fourth = four == best ? after_second - third : T(0);
    dz[c] = first * slope[c];
    dz[right + c] = second * slope[right + c];
    dz[below + c] = third * slope[below + c];
    dz[corner + c] = fourth * slope[corner + c];
  }
}

// dz [R, stride] = the gradient by a [B, H, W] from the gradient d by what `pool` made of it.
template <typename T>
void unpool(const Layer &layer, i64 images, const T *d, i64 image_pitch, i64 pitch, const T *a,
            const T *slope, T *dz) {
  const i64 high = layer.height / 2, wide = layer.width / 2, below = layer.width * layer.stride;
  if (layer.height % 2 || layer.width % 2)
    std::memset(dz, 0, sizeof(T) * images * layer.height * layer.width * layer.stride);
  for (i64 image = 0; image < images; ++image)
    for (i64 y = 0; y < high; ++y)
      for (i64 x = 0; x < wide; ++x) {
        const i64 at = ((image * layer.height + 2 * y) * layer.width + 2 * x) * layer.stride;
        spread<T>(layer.outputs, layer.stride, below, d + image * image_pitch + (y * wide + x) * pitch,
                  a + at, slope + at, dz + at);
      }
}

// ---------------------------------------------------------------------------------------- losses

// Return the sum of row losses; out [rows, wide] becomes the gradient of their mean by itself.
template <typename T>
double cross_entropy(i64 rows, i64 classes, i64 wide, T *out, const i64 *targets, const i64 *order,
                     T smoothing) {
  double total = 0.0;
  for (i64 r = 0; r < rows; ++r) {
    T *o = out + r * wide;
    const i64 target = targets[order[r]];
    const T hit = o[target];
    T top = o[0];
    for (i64 c = 1; c < classes; ++c) top = o[c] > top || o[c] != o[c] ? o[c] : top;
    T sum = 0, all = 0;
    for (i64 c = 0; c < classes; ++c) {
      all += o[c] - top;
      o[c] = std::exp(o[c] - top);
      sum += o[c];
    }
    const T log_sum = std::log(sum);
    total += -(T(1) - smoothing) * (hit - top - log_sum) -
             smoothing * (all / static_cast<T>(classes) - log_sum);
    for (i64 c = 0; c < classes; ++c)
      o[c] = (o[c] / sum - smoothing / static_cast<T>(classes)) / static_cast<T>(rows);
    o[target] -= (T(1) - smoothing) / static_cast<T>(rows);
  }
  return total;
}

template <typename T> inline T sign(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : x; }

template <typename T>
double numbers_loss(i64 kind, i64 rows, i64 columns, i64 wide, T *out, const T *targets,
                    const i64 *order, T smoothing) {
  double total = 0.0;
  const T share = T(1) / static_cast<T>(rows) / static_cast<T>(columns);
  for (i64 r = 0; r < rows; ++r) {
    T *o = out + r * wide;
    const T *t = targets + order[r] * columns;
    T sum = 0;
    for (i64 c = 0; c < columns; ++c) {
      const T z = o[c], e = z - t[c], size = std::abs(e);
      if (kind == kBinaryCrossEntropy) {
        const T soft = t[c] * (T(1) - smoothing) + T(0.5) * smoothing;
        sum += std::max(z, T(0)) - z * soft + std::log1p(std::exp(-std::abs(z)));
        o[c] = (sigmoid(z) - soft) * share;
      } else if (kind == kMse) {
        sum += e * e;
        o[c] = T(2) * e * share;
      } else if (kind == kMae) {
        sum += size;
        o[c] = sign(e) * share;
      } else {
        sum += size <= T(1) ? T(0.5) * e * e : size - T(0.5);
        o[c] = (size <= T(1) ? e : sign(e)) * share;
      }
    }
    total += sum / static_cast<T>(columns);
  }
  return total;
}

// ------------------------------------------------------------------------------------- optimizers

// One step of P weights, by the formulas of optim/updates.py. coefficients: scale, step size, shrink,
// but of kAdamax and those after it the numbers that their own update there has.
template <typename T>
KERNEL void take_step(const Optimizer &optimizer, const double *coefficients, i64 P, T *__restrict p,
               const T *__restrict gradient, T *__restrict a, T *__restrict b) {
  const T l2 = static_cast<T>(optimizer.l2), eps = static_cast<T>(optimizer.eps);
  const T momentum = static_cast<T>(optimizer.momentum);
  const T beta1 = static_cast<T>(optimizer.beta1), gain1 = static_cast<T>(1.0 - optimizer.beta1);
  const T beta2 = static_cast<T>(optimizer.beta2), gain2 = static_cast<T>(1.0 - optimizer.beta2);
  const T c0 = static_cast<T>(coefficients[0]), c1 = static_cast<T>(coefficients[1]);
  const T c2 = static_cast<T>(coefficients[2]);
  const T scale = c0, step_size = c1, shrink = c2;
  switch (optimizer.kind) {
    case kSgd:
      for (i64 i = 0; i < P; ++i) {
        a[i] = momentum * a[i] + (gradient[i] + l2 * p[i]);
        p[i] -= step_size * a[i];
      }
      return;
    case kNesterov:
      for (i64 i = 0; i < P; ++i) {
        const T g = gradient[i] + l2 * p[i];
        a[i] = momentum * a[i] + g;
        p[i] -= step_size * (g + momentum * a[i]);
      }
      return;
    case kAdagrad:
      for (i64 i = 0; i < P; ++i) {
        const T g = gradient[i] + l2 * p[i];
        b[i] += g * g;
        p[i] -= step_size * g / (std::sqrt(b[i]) + eps);
      }
      return;
    case kRmsprop:
      for (i64 i = 0; i < P; ++i) {
        const T g = gradient[i] + l2 * p[i];
        b[i] = beta2 * b[i] + gain2 * g * g;
        a[i] = momentum * a[i] + g / (std::sqrt(b[i]) + eps);
        p[i] -= step_size * a[i];
      }
      return;
    case kAdamax:
      for (i64 i = 0; i < P; ++i) {
        const T g = gradient[i] + l2 * p[i];
        a[i] = beta1 * a[i] + gain1 * g;
        b[i] = larger(beta2 * b[i], std::abs(g) + eps);
        p[i] -= c0 * a[i] / b[i];
      }
      return;
    case kAdadelta:
      for (i64 i = 0; i < P; ++i) {
        const T g = gradient[i] + l2 * p[i];
        b[i] = beta2 * b[i] + gain2 * g * g;
        const T delta = std::sqrt(a[i] + eps) / std::sqrt(b[i] + eps) * g;
        a[i] = beta2 * a[i] + gain2 * delta * delta;
        p[i] -= c0 * delta;
      }
      return;
    case kNadam:
      for (i64 i = 0; i < P; ++i) {
        const T g = gradient[i] + l2 * p[i];
        a[i] = beta1 * a[i] + gain1 * g;
        b[i] = beta2 * b[i] + gain2 * g * g;
        p[i] -= (c1 * g + c2 * a[i]) / (c0 * std::sqrt(b[i]) + eps);
      }
      return;
    case kRadam:
      for (i64 i = 0; i < P; ++i) {
        const T g = gradient[i] + l2 * p[i];
        a[i] = beta1 * a[i] + gain1 * g;
        b[i] = beta2 * b[i] + gain2 * g * g;
        p[i] -= c0 * a[i] * (c1 > T(0) ? T(1) / (std::sqrt(b[i]) + eps) : T(1));
      }
      return;
    case kLion:  // l2 is not for the gradient: the decay is in c1
      for (i64 i = 0; i < P; ++i) {
        const T direction = sign(beta1 * a[i] + gain1 * gradient[i]);
        a[i] = beta2 * a[i] + gain2 * gradient[i];
        p[i] = c1 * p[i] - c0 * direction;
      }
      return;
    default:
      for (i64 i = 0; i < P; ++i) {
        const T g = gradient[i] + l2 * p[i];
        a[i] = beta1 * a[i] + gain1 * g;
        b[i] = beta2 * b[i] + gain2 * g * g;
        p[i] = shrink * p[i] - step_size * a[i] / (scale * std::sqrt(b[i]) + eps);
      }
  }
}

// One step of the weights from `first` to `last`.
template <typename T>
void update(const Trial<T> &trial, const double *coefficients, i64 first, i64 last, const T *gradient) {
  take_step<T>(trial.optimizer, coefficients, last - first, trial.weights + first, gradient + first,
               trial.average + first, trial.square + first);
}

template <typename T>
void penalise(const Trial<T> &trial, i64 first, i64 last, T *gradient) {
  const T l1 = static_cast<T>(trial.l1);
  for (i64 i = first; i < last; ++i) gradient[i] += l1 * sign(trial.weights[i]);
}

template <typename T> void clip(const Trial<T> &trial, T *gradient) {
  double squares = 0.0;
  for (i64 i = 0; i < trial.size; ++i) squares += static_cast<double>(gradient[i]) * gradient[i];
  const double factor = trial.clip / (std::sqrt(squares) + 1e-6);
  if (!(factor >= 1.0))  // a NaN norm spreads, as in torch
    for (i64 i = 0; i < trial.size; ++i) gradient[i] *= static_cast<T>(factor);
}

// ---------------------------------------------------------------------------------- steps, epochs

// Cuts a buffer into arrays that start on cache lines.
struct Cutter {
  char *next;
  template <typename N> N *take(i64 size) {
    N *start = reinterpret_cast<N *>(next);
    next += round_up(size * static_cast<i64>(sizeof(N)), 64);
    return start;
  }
};

template <typename T>
void sum_rows(i64 R, i64 columns, i64 stride, const T *__restrict rows, T *__restrict sums) {
  std::memset(sums, 0, sizeof(T) * stride);
  for (i64 r = 0; r < R; ++r)
    for (i64 c = 0; c < columns; ++c) sums[c] += rows[r * stride + c];
}

#include "recurrent.h"

// One layer's arrays for a batch.
template <typename T> struct Room {
  T *input;  // framed [B, …]; of a linear layer after a linear one: that one's output itself
  T *output, *slope, *dz, *error;  // [R, stride]; error: dz, framed where the kernel needs it
  T *back;                         // gradient by the input [R, stride(C)]
  i64 back_stride, error_size;
  Normal<T> normal;
  Grid in, out;
};

template <typename T> inline i64 run_of(const Layer &layer) {
  return layer.kernel == 1 ? layer.channels : layer.kernel * layer.pitch;
}

template <typename T> struct Workspace {
  T *gradient, *turned;
  Room<T> rooms[kMostLayers];
  char *layers, *end;  // where the rooms begin and end
  SequenceSpace<T> sequences;

  Workspace(const Trial<T> &trial, i64 batch, char *buffer) : Workspace(trial, batch, Cutter{buffer}) {}

  Workspace(const Trial<T> &trial, i64 batch, Cutter cutter)
      : sequences(trial, batch, cutter) {
    gradient = cutter.take<T>(trial.size);
    i64 most = 0;
    for (i64 l = trial.cell_count ? 0 : 1; l < trial.count; ++l) most = std::max(most, turned_size(trial.layers[l]));
    turned = cutter.take<T>(most);
    layers = cutter.next;
    for (i64 l = 0; l < trial.count; ++l) furnish(trial, l, batch, cutter);
    end = cutter.next;
  }

  static i64 turned_size(const Layer &layer) {
    const i64 rows = layer.kernel == 1 ? round_up(layer.outputs, kBlock) : layer.stride;
    return layer.kernel * layer.kernel * rows * stride_of<T>(layer.channels);
  }

  void furnish(const Trial<T> &trial, i64 l, i64 batch, Cutter &cutter) {
    const Layer &layer = trial.layers[l];
    Room<T> &room = rooms[l];
    room.in = grid_of(layer, layer.pitch);
    room.out = grid_of(layer, layer.stride);
    const i64 R = batch * room.in.positions;
    // A run may start up to a register before the end of what it reads.
    room.input = shares(trial, l) ? rooms[l - 1].output : cutter.take<T>(batch * room.in.image);
    room.output = cutter.take<T>(R * layer.stride);
    room.slope = cutter.take<T>(R * layer.stride);
    room.dz = cutter.take<T>(R * layer.stride);
    room.error_size = layer.kernel == 1 ? 0 : batch * room.out.image;
    room.error = layer.kernel == 1 ? room.dz : cutter.take<T>(room.error_size);
    room.back_stride = stride_of<T>(layer.channels);
    room.back = cutter.take<T>(l || trial.cell_count ? R * room.back_stride : 0);
    room.normal.standard = cutter.take<T>(layer.norm == kNone ? 0 : R * layer.stride);
    room.normal.inverse = cutter.take<T>(layer.norm == kNone ? 0 : std::max(R, layer.stride));
    room.normal.sums = cutter.take<double>(layer.norm == kNone ? 0 : layer.stride);
    room.normal.products = cutter.take<double>(layer.norm == kNone ? 0 : layer.stride);
  }

  // Whether a layer reads its predecessor's output where it stands.
  static bool shares(const Trial<T> &trial, i64 l) {
    if (l == 0) return false;
    const Layer &before = trial.layers[l - 1], &layer = trial.layers[l];
    return !before.pooled && before.height * before.width == 1 && layer.kernel == 1 &&
           layer.pitch == before.stride;
  }
};

template <typename T>
void hand_on(const Trial<T> &trial, i64 l, i64 images, Workspace<T> &space) {
  if (Workspace<T>::shares(trial, l + 1)) return;
  const Layer &layer = trial.layers[l], &after = trial.layers[l + 1];
  Room<T> &room = space.rooms[l], &next = space.rooms[l + 1];
  Grid grid = next.in;
  T *to = next.input;
  if (after.height * after.width == 1 && after.kernel == 1) {
    // A linear layer reads the whole image, channels last, as one row.
    const i64 wide = layer.pooled ? layer.width / 2 : layer.width;
    grid = {0, wide, next.in.image, wide * layer.stride, layer.stride};
  } else {
    to += after.kernel / 2 * (grid.line + grid.pitch);
  }
  if (layer.pooled) return pool<T>(layer, images, room.output, to, grid);
  for (i64 image = 0; image < images; ++image)
    for (i64 y = 0; y < layer.height; ++y)
      for (i64 x = 0; x < layer.width; ++x)
        std::memcpy(to + image * grid.image + y * grid.line + x * grid.pitch,
                    room.output + ((image * layer.height + y) * layer.width + x) * layer.stride,
                    sizeof(T) * layer.outputs);
}

template <typename T>
void forward(const Trial<T> &trial, i64 images, Workspace<T> &space, i64 step, bool training) {
  for (i64 l = 0; l < trial.count; ++l) {
    const Layer &layer = trial.layers[l];
    Room<T> &room = space.rooms[l];
    const i64 R = images * room.in.positions;
    patches<T>(images, room.in, layer.kernel, run_of<T>(layer), layer.outputs, room.input,
               trial.weights + layer.weight, layer.stride, room.output, layer.stride,
               trial.weights + layer.bias);
    if (l + 1 == trial.count) return;
    if (layer.norm == kBatch)
      normalise_batch<T>(trial, layer, R, training, room.output, room.normal);
    if (layer.norm == kLayerwise) normalise_rows<T>(trial, layer, R, room.output, room.normal);
    activate<T>(trial.activation, R * layer.stride, room.output, room.slope);
    if (training && layer.dropped >= 0 && trial.dropout > 0.0)
      drop<T>(trial, layer, step, R, room.output, room.slope);
    hand_on<T>(trial, l, images, space);
  }
}

// dz [R, stride] = gradient by the layer's sums, from the gradient by the next layer's input.
template <typename T>
KERNEL void hand_back(const Trial<T> &trial, i64 l, i64 images, const Workspace<T> &space, T *dz) {
  const Layer &layer = trial.layers[l], &after = trial.layers[l + 1];
  const Room<T> &room = space.rooms[l], &next = space.rooms[l + 1];
  const i64 positions = room.in.positions;
  // A linear layer's input gradient is one long row per image: the image, channels last.
  const bool flat = after.height * after.width == 1;
  const i64 pitch = flat ? layer.stride : next.back_stride;
  const i64 image_pitch = flat ? next.back_stride : next.in.positions * next.back_stride;
  if (layer.pooled)
    return unpool<T>(layer, images, next.back, image_pitch, pitch, room.output, room.slope, dz);
  for (i64 r = 0; r < images * positions; ++r) {
    const T *__restrict from = next.back + r / positions * image_pitch + r % positions * pitch;
    const T *__restrict slope = room.slope + r * layer.stride;
    T *__restrict to = dz + r * layer.stride;
    for (i64 c = 0; c < layer.outputs; ++c) to[c] = from[c] * slope[c];
  }
}

// The same for the recurrent layers, from the gradient by the first layer's input.
template <typename T>
void backward_and_update_cells(const Trial<T> &trial, i64 rows, Workspace<T> &space,
                               const double *coefficients) {
  const i64 last = trial.layers[0].weight;
  std::memset(space.gradient, 0, sizeof(T) * last);
  back_sequences<T>(trial, space.sequences, rows, space.rooms[0].back, space.rooms[0].back_stride,
                    space.gradient);
  if (trial.l1 > 0.0) penalise<T>(trial, 0, last, space.gradient);
  if (trial.clip < 0.0) update<T>(trial, coefficients, 0, last, space.gradient);
}

// Take one step against the gradient of the outputs' error, which stands in the last layer's output. The
// recurrent layers' weights, which stand before the others, are left to `backward_and_update_cells`.
template <typename T>
void backward_and_update(const Trial<T> &trial, i64 images, Workspace<T> &space, const double *coefficients) {
  T *gradient = space.gradient;
  for (i64 l = trial.count - 1; l >= 0; --l) {
    const Layer &layer = trial.layers[l];
    Room<T> &room = space.rooms[l];
    const i64 R = images * room.in.positions, frame = layer.kernel / 2;
    T *dz = l + 1 == trial.count ? room.output : room.dz;
    if (l + 1 < trial.count) hand_back<T>(trial, l, images, space, dz);
    if (layer.norm != kNone)
      std::memset(gradient + layer.scale, 0, sizeof(T) * 2 * layer.stride);
    if (layer.norm == kBatch) unnormalise_batch<T>(trial, layer, R, dz, room.normal, gradient);
    if (layer.norm == kLayerwise) unnormalise_rows<T>(trial, layer, R, dz, room.normal, gradient);
    const T *error = dz;
    if (layer.kernel > 1) {
      T *to = room.error + frame * (room.out.line + room.out.pitch);
      for (i64 r = 0; r < images * layer.height; ++r)
        std::memcpy(to + r / layer.height * room.out.image + r % layer.height * room.out.line,
                    dz + r * layer.width * layer.stride, sizeof(T) * layer.width * layer.stride);
      error = to;
    }
    sum_rows<T>(R, layer.outputs, layer.stride, dz, gradient + layer.bias);
    if (l > 0 || trial.cell_count) {  // before the weights change
      turn<T>(layer, layer.kernel == 1 ? layer.channels : layer.pitch, trial.weights + layer.weight,
              space.turned, room.back_stride);
      const i64 run = layer.kernel == 1 ? layer.outputs : layer.kernel * layer.stride;
      patches<T>(images, room.out, layer.kernel, run, layer.channels,
                 layer.kernel > 1 ? room.error : dz, space.turned, room.back_stride, room.back,
                 room.back_stride, nullptr);
    }
    const i64 run = run_of<T>(layer);
    for (i64 tap = 0; tap < layer.kernel; ++tap)
      outer_products<T>(run, layer.outputs, images, room.in, room.out,
                        room.input + tap * room.in.line, error,
                        gradient + layer.weight + tap * run * layer.stride, layer.stride);
    const i64 last = l + 1 < trial.count ? trial.layers[l + 1].weight : trial.size;
    if (trial.l1 > 0.0) penalise<T>(trial, layer.weight, last, gradient);
    // At once, while the gradient is in the cache; a norm over all of them must wait for all.
    if (trial.clip < 0.0) update<T>(trial, coefficients, layer.weight, last, gradient);
  }
  if (trial.cell_count) backward_and_update_cells<T>(trial, images, space, coefficients);
  if (trial.clip >= 0.0) {
    clip<T>(trial, gradient);
    update<T>(trial, coefficients, 0, trial.size, gradient);
  }
}

// Copy rows [H, W, C] into the first layer's framed input.
template <typename T>
void gather(const Layer &layer, const Room<T> &room, const T *data, const i64 *order, i64 rows) {
  const i64 line = layer.width * layer.channels, frame = layer.kernel / 2;
  T *to = room.input + frame * (room.in.line + room.in.pitch);
  for (i64 r = 0; r < rows; ++r) {
    const T *from = data + (order ? order[r] : r) * layer.height * line;
    for (i64 y = 0; y < layer.height; ++y)
      std::memcpy(to + r * room.in.image + y * room.in.line, from + y * line, sizeof(T) * line);
  }
}

// The rows of a batch as the first layer's input: copied there, or read by the recurrent layers.
template <typename T>
void read(const Trial<T> &trial, Workspace<T> &space, const T *data, const i64 *order, i64 rows, i64 step,
          bool training) {
  if (!trial.cell_count) return gather<T>(trial.layers[0], space.rooms[0], data, order, rows);
  gather_sequences<T>(trial.cells[0], space.sequences.layers[0].input, data, order, rows);
  forward_sequences<T>(trial, space.sequences, rows, step, training, space.rooms[0].input,
                       space.rooms[0].in.pitch);
}

template <typename T> double train(const Trial<T> &trial, const Slice<T> &slice, char *buffer) {
  Workspace<T> space(trial, slice.batch, buffer);
  std::memset(buffer, 0, space.end - buffer);  // the frames, and nothing of the lane before
  const Layer &last = trial.layers[trial.count - 1];
  const T smoothing = static_cast<T>(trial.smoothing);
  double total = 0.0;
  i64 step = 0;
  for (i64 start = 0; start < slice.rows_in_slice; start += slice.batch, ++step) {
    const i64 rows = std::min(slice.batch, slice.rows_in_slice - start);
    const i64 *order = slice.order + start;
    read<T>(trial, space, slice.rows, order, rows, trial.steps + step, true);
    forward<T>(trial, rows, space, trial.steps + step, true);
    T *out = space.rooms[trial.count - 1].output;
    total += slice.loss == kCrossEntropy
                 ? cross_entropy<T>(rows, last.outputs, last.stride, out,
                                    static_cast<const i64 *>(slice.targets), order, smoothing)
                 : numbers_loss<T>(slice.loss, rows, last.outputs, last.stride, out,
                                   static_cast<const T *>(slice.targets), order, smoothing);
    backward_and_update<T>(trial, rows, space, slice.coefficients + 3 * step);
  }
  return total;
}

constexpr i64 kEvaluationRows = 64;

template <typename T>
void evaluate(const Trial<T> &trial, const T *rows, i64 count, T *outputs, char *buffer) {
  Workspace<T> space(trial, kEvaluationRows, buffer);
  std::memset(space.layers, 0, space.end - space.layers);
  const Layer &first = trial.layers[0], &last = trial.layers[trial.count - 1];
  const i64 numbers = trial.cell_count ? trial.cells[0].steps * trial.cells[0].features
                                       : first.height * first.width * first.channels;
  for (i64 start = 0; start < count; start += kEvaluationRows) {
    const i64 many = std::min(kEvaluationRows, count - start);
    read<T>(trial, space, rows + start * numbers, nullptr, many, 0, false);
    forward<T>(trial, many, space, 0, false);
    for (i64 r = 0; r < many; ++r)
      std::memcpy(outputs + (start + r) * last.outputs,
                  space.rooms[trial.count - 1].output + r * last.stride, sizeof(T) * last.outputs);
  }
}

template <typename T> i64 buffer_bytes(const Trial<T> &trial, i64 batch) {
  const Workspace<T> space(trial, std::max(batch, kEvaluationRows), nullptr);
  return space.end - static_cast<char *>(nullptr);
}

}  // namespace

extern "C" {

std::int64_t tuner_most_layers() { return kMostLayers; }

// What library.py takes these for, whatever T is.
static_assert(sizeof(Trial<float>) == sizeof(Trial<double>), "T stands behind pointers only");
static_assert(sizeof(Slice<float>) == sizeof(Slice<double>), "T stands behind pointers only");
std::int64_t tuner_size_layer() { return sizeof(Layer); }
std::int64_t tuner_size_cells() { return sizeof(Cells); }
std::int64_t tuner_size_optimizer() { return sizeof(Optimizer); }
std::int64_t tuner_size_trial() { return sizeof(Trial<float>); }
std::int64_t tuner_size_slice() { return sizeof(Slice<float>); }

std::int64_t tuner_stride_float(std::int64_t columns) { return stride_of<float>(columns); }
std::int64_t tuner_stride_double(std::int64_t columns) { return stride_of<double>(columns); }
std::int64_t tuner_buffer_float(const Trial<float> *t, std::int64_t batch) {
  return buffer_bytes<float>(*t, batch);
}
std::int64_t tuner_buffer_double(const Trial<double> *t, std::int64_t batch) {
  return buffer_bytes<double>(*t, batch);
}
double tuner_train_float(const Trial<float> *t, const Slice<float> *s, char *buffer) {
  return train<float>(*t, *s, buffer);
}
double tuner_train_double(const Trial<double> *t, const Slice<double> *s, char *buffer) {
  return train<double>(*t, *s, buffer);
}
void tuner_evaluate_float(const Trial<float> *t, const float *rows, std::int64_t count, float *out,
                          char *buffer) {
  evaluate<float>(*t, rows, count, out, buffer);
}
void tuner_evaluate_double(const Trial<double> *t, const double *rows, std::int64_t count,
                           double *out, char *buffer) {
  evaluate<double>(*t, rows, count, out, buffer);
}
}
