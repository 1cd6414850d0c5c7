// Recurrent layers: rnn, gru and lstm, forwards, or both ways, and their way back through time.
// Included by kernels.cpp, whose products, activations and random numbers it uses.
//
//   B  rows of a batch        F  numbers of a step's input      G  gates: 1 rnn, 3 gru, 4 lstm
//   S  steps of a sequence    H  hidden units                   D  directions: 1 or 2
//
// Arrays lie step by step, [S, B, …]: what one step needs is one run of memory, and the products that
// do not depend on the step before (inputs by weights, gradients of the weights) take all steps as one
// tall matrix. A weight is [F or H, stride(G·H)], PyTorch's transposed.
//
// States have a slab of zeros before the first step and one after the last, so that both directions
// find the state before theirs where they look for it.

// ------------------------------------------------------------------------------- smooth functions

inline double exponential(double x) { return std::exp(x); }
inline double tangent(double x) { return std::tanh(x); }

// Without a branch, so that the compiler takes a register of them at once; libm's would be called one
// by one, and cost as much as the products. Relative error below 2e-7.
// Source: Moshier's Cephes library, expf.c and tanhf.c.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;  // NaN stays NaN
  x = x > 88.0f ? 88.0f : x;
  const float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // to the nearest integer
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return (p * r * r + r + 1.0f) * power;
}

inline float tangent(float x) {
  const float s = x * x;
  float p = -5.70498872745e-3f;
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const float near = p * s * x + x;
  const float far = 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
  return s < 0.390625f ? near : far;  // |x| < 0.625
}

template <typename T> inline T logistic(T x) { return T(1) / (T(1) + exponential(-x)); }

// ------------------------------------------------------------------------------------ the structures

enum CellKind { kRnn, kGru, kLstm };

inline i64 gates_of(i64 kind) { return kind == kLstm ? 4 : kind == kGru ? 3 : 1; }

// One direction of one layer. A layer's directions stand side by side.
struct Cells {
  i64 kind, features, pitch;  // pitch: numbers from one row of the input to the next
  i64 units, stride, gates;   // stride: of a state's row; gates: of a row of all gates
  i64 steps, backward, directions, dropped;
  i64 weight_ih, weight_hh, bias_ih, bias_hh;
};

// What one direction keeps of a batch for its way back.
template <typename T> struct CellRoom {
  T *gates;                  // [S, B, gates]: the gates; on the way back their gradients
  T *fresh;                  // [S, B, gates]: gru's recurrent part; rnn's slopes
  T *state, *cell, *curved;  // [S + 2, B, stride] h and c; [S, B, stride] tanh(c)
  T *dh, *dc;                // [B, stride]
  T *bias;                   // [gates]
  T *turned_ih, *turned_hh;  // weights, transposed
};

// What a layer shares between its directions.
template <typename T> struct SequenceRoom {
  T *input;  // [S, B, pitch]
  T *error;  // [S, B, wide]: gradient by the layer's output
  T *kept;   // [S, B, wide]: what dropout multiplies the output by
  i64 wide;  // stride of a row of all directions
};

inline Grid lines(i64 pitch) { return {1, 1, pitch, pitch, pitch}; }

// ------------------------------------------------------------------------------------------- steps

// h, c and tanh(c) from the gates' sums z, which become the gates.
template <typename T>
KERNEL void lstm_step(const Cells &c, i64 rows, T *__restrict z, const T *__restrict before,
                      T *__restrict cell, T *__restrict curved, T *__restrict state) {
  const i64 H = c.units;
  for (i64 r = 0; r < rows; ++r, z += c.gates, before += c.stride, cell += c.stride,
           curved += c.stride, state += c.stride)
    for (i64 h = 0; h < H; ++h) {
      const T enter = logistic(z[h]), forget = logistic(z[H + h]);
      const T fresh = tangent(z[2 * H + h]), leave = logistic(z[3 * H + h]);
      z[h] = enter;
      z[H + h] = forget;
      z[2 * H + h] = fresh;
      z[3 * H + h] = leave;
      cell[h] = forget * before[h] + enter * fresh;
      curved[h] = tangent(cell[h]);
      state[h] = leave * curved[h];
    }
}

// Gradients by the gates' sums, in the gates' place; dc becomes the gradient by the cell before.
template <typename T>
KERNEL void lstm_back(const Cells &c, i64 rows, T *__restrict z, const T *__restrict before,
                      const T *__restrict curved, const T *__restrict dh, T *__restrict dc) {
  const i64 H = c.units;
  for (i64 r = 0; r < rows;
       ++r, z += c.gates, before += c.stride, curved += c.stride, dh += c.stride, dc += c.stride)
    for (i64 h = 0; h < H; ++h) {
      const T enter = z[h], forget = z[H + h], fresh = z[2 * H + h], leave = z[3 * H + h];
      const T down = dc[h] + dh[h] * leave * (T(1) - curved[h] * curved[h]);
      z[h] = down * fresh * enter * (T(1) - enter);
      z[H + h] = down * before[h] * forget * (T(1) - forget);
      z[2 * H + h] = down * enter * (T(1) - fresh * fresh);
      z[3 * H + h] = dh[h] * curved[h] * leave * (T(1) - leave);
      dc[h] = down * forget;
    }
}

// h' = n + u·(h - n), with n = tanh(x_n + r·h_n), from the inputs' part z and the state's part.
template <typename T>
KERNEL void gru_step(const Cells &c, i64 rows, T *__restrict z, const T *__restrict recurrent,
                     const T *__restrict before, T *__restrict state) {
  const i64 H = c.units;
  for (i64 r = 0; r < rows;
       ++r, z += c.gates, recurrent += c.gates, before += c.stride, state += c.stride)
    for (i64 h = 0; h < H; ++h) {
      const T reset = logistic(z[h] + recurrent[h]), keep = logistic(z[H + h] + recurrent[H + h]);
      const T fresh = tangent(z[2 * H + h] + reset * recurrent[2 * H + h]);
      z[h] = reset;
      z[H + h] = keep;
      z[2 * H + h] = fresh;
      state[h] = fresh + keep * (before[h] - fresh);
    }
}

// Gradients by the inputs' part in z and by the state's part in `recurrent`; dh becomes the part of the
// gradient by the state before that does not go through the weights.
template <typename T>
KERNEL void gru_back(const Cells &c, i64 rows, T *__restrict z, T *__restrict recurrent,
                     const T *__restrict before, T *__restrict dh) {
  const i64 H = c.units;
  for (i64 r = 0; r < rows;
       ++r, z += c.gates, recurrent += c.gates, before += c.stride, dh += c.stride)
    for (i64 h = 0; h < H; ++h) {
      const T reset = z[h], keep = z[H + h], fresh = z[2 * H + h];
      const T inner = dh[h] * (T(1) - keep) * (T(1) - fresh * fresh);
      z[H + h] = recurrent[H + h] = dh[h] * (before[h] - fresh) * keep * (T(1) - keep);
      z[h] = recurrent[h] = inner * recurrent[2 * H + h] * reset * (T(1) - reset);
      z[2 * H + h] = inner;
      recurrent[2 * H + h] = inner * reset;
      dh[h] *= keep;
    }
}

template <typename T>
KERNEL void rnn_step(const Cells &c, i64 activation, i64 rows, T *__restrict z, T *__restrict slope,
                     T *__restrict state) {
  if (activation == kTanh)
    for (i64 i = 0; i < rows * c.gates; ++i) {
      z[i] = tangent(z[i]);
      slope[i] = T(1) - z[i] * z[i];
    }
  else
    activate<T>(activation, rows * c.gates, z, slope);
  for (i64 r = 0; r < rows; ++r) std::memcpy(state + r * c.stride, z + r * c.gates, sizeof(T) * c.units);
}

// ------------------------------------------------------------------------------------ one direction

// From the layer's input [S, B, pitch] to every state.
template <typename T>
void run_cells(const Trial<T> &trial, const Cells &c, i64 rows, const T *input, CellRoom<T> &room) {
  const i64 wide = gates_of(c.kind) * c.units, slab = rows * c.stride, gates = rows * c.gates;
  const T *weight_hh = trial.weights + c.weight_hh, *bias_hh = trial.weights + c.bias_hh;
  for (i64 j = 0; j < c.gates; ++j)
    room.bias[j] = trial.weights[c.bias_ih + j] + (c.kind == kGru ? T(0) : bias_hh[j]);
  patches<T>(c.steps * rows, lines(c.pitch), 1, c.features, wide, input, trial.weights + c.weight_ih,
             c.gates, room.gates, c.gates, room.bias);
  for (T *states : {room.state, room.cell}) {
    if (!states) continue;
    std::memset(states, 0, sizeof(T) * slab);
    std::memset(states + (c.steps + 1) * slab, 0, sizeof(T) * slab);
  }
  for (i64 k = 0; k < c.steps; ++k) {
    const i64 t = c.backward ? c.steps - 1 - k : k, before = c.backward ? t + 2 : t;
    T *z = room.gates + t * gates, *to = room.state + (t + 1) * slab;
    const T *from = room.state + before * slab;
    if (c.kind == kGru) {
      T *recurrent = room.fresh + t * gates;
      patches<T>(rows, lines(c.stride), 1, c.units, wide, from, weight_hh, c.gates, recurrent, c.gates,
                 bias_hh);
      gru_step<T>(c, rows, z, recurrent, from, to);
      continue;
    }
    if (k)  // onto the inputs' part
      patches<T>(rows, lines(c.stride), 1, c.units, wide, from, weight_hh, c.gates, z, c.gates, z,
                 c.gates);
    if (c.kind == kLstm)
      lstm_step<T>(c, rows, z, room.cell + before * slab, room.cell + (t + 1) * slab,
                   room.curved + t * slab, to);
    else
      rnn_step<T>(c, trial.activation, rows, z, room.fresh + t * gates, to);
  }
}

constexpr i64 kOuterRows = 256;  // of a tall product: what stays in a core's own cache

// C[M, N] += A[rows, M]ᵀ·E[rows, N].
template <typename T>
void add_outer(i64 rows, i64 M, i64 N, const T *A, i64 lda, const T *E, i64 lde, T *C, i64 ldc) {
  for (i64 first = 0; first < rows; first += kOuterRows)
    outer_products<T>(M, N, std::min(kOuterRows, rows - first), lines(lda), lines(lde), A + first * lda,
                      E + first * lde, C, ldc, true);
}

template <typename T>
void transpose(i64 depth, i64 units, i64 stride, const T *from, T *to, i64 to_stride) {
  const Layer layer{depth, depth, units, stride, 1, 1, 1, 0, 0, -1, 0, 0, 0, 0};
  turn<T>(layer, depth, from, to, to_stride);
}

// Gradients of a direction's weights, from the gradient by the layer's output; `offset` is where the
// direction's columns start. Adds the gradient by the layer's input to `back` [S, B, back_stride],
// where there is one.
template <typename T>
void back_cells(const Trial<T> &trial, const Cells &c, i64 rows, const SequenceRoom<T> &layer,
                i64 offset, CellRoom<T> &room, T *gradient, T *back, i64 back_stride, bool add) {
  const i64 wide = gates_of(c.kind) * c.units, slab = rows * c.stride, gates = rows * c.gates;
  transpose<T>(c.units, wide, c.gates, trial.weights + c.weight_hh, room.turned_hh, c.stride);
  std::memset(room.dh, 0, sizeof(T) * slab);
  if (room.dc) std::memset(room.dc, 0, sizeof(T) * slab);
  for (i64 k = c.steps - 1; k >= 0; --k) {
    const i64 t = c.backward ? c.steps - 1 - k : k, before = c.backward ? t + 2 : t;
    T *z = room.gates + t * gates, *recurrent = room.fresh ? room.fresh + t * gates : nullptr;
    for (i64 r = 0; r < rows; ++r) {
      const T *error = layer.error + (t * rows + r) * layer.wide + offset;
      for (i64 h = 0; h < c.units; ++h) room.dh[r * c.stride + h] += error[h];
    }
    const T *source = z, *onto = nullptr;
    if (c.kind == kLstm) {
      lstm_back<T>(c, rows, z, room.cell + before * slab, room.curved + t * slab, room.dh, room.dc);
    } else if (c.kind == kGru) {
      gru_back<T>(c, rows, z, recurrent, room.state + before * slab, room.dh);
      source = recurrent;
      onto = room.dh;
    } else {
      for (i64 r = 0; r < rows; ++r) {
        for (i64 h = 0; h < c.units; ++h)
          z[r * c.gates + h] = room.dh[r * c.stride + h] * recurrent[r * c.gates + h];
        // activation(0) need not be 0: the columns that fill a register have no gradient.
        std::fill(z + r * c.gates + c.units, z + (r + 1) * c.gates, T(0));
      }
    }
    if (k)  // nobody asks for the gradient by the zeros before the first step
      patches<T>(rows, lines(c.gates), 1, wide, c.units, source, room.turned_hh, c.stride, room.dh,
                 c.stride, onto, c.stride);
  }
  const T *by_state = c.kind == kGru ? room.fresh : room.gates;
  const T *states = room.state + (c.backward ? 2 * slab : 0);
  add_outer<T>(c.steps * rows, c.features, wide, layer.input, c.pitch, room.gates, c.gates,
               gradient + c.weight_ih, c.gates);
  add_outer<T>(c.steps * rows, c.units, wide, states, c.stride, by_state, c.gates,
               gradient + c.weight_hh, c.gates);
  sum_rows<T>(c.steps * rows, wide, c.gates, room.gates, gradient + c.bias_ih);
  sum_rows<T>(c.steps * rows, wide, c.gates, by_state, gradient + c.bias_hh);
  if (back) {
    transpose<T>(c.features, wide, c.gates, trial.weights + c.weight_ih, room.turned_ih, back_stride);
    patches<T>(c.steps * rows, lines(c.gates), 1, wide, c.features, room.gates, room.turned_ih,
               back_stride, back, back_stride, add ? back : nullptr, back_stride);
  }
}

// -------------------------------------------------------------------------------------- all layers

template <typename T> struct SequenceSpace {
  CellRoom<T> cells[kMostLayers];
  SequenceRoom<T> layers[kMostLayers];  // by the number of the layer's first direction

  SequenceSpace(const Trial<T> &trial, i64 batch, Cutter &cutter) {
    for (i64 i = 0; i < trial.cell_count; ++i) furnish(trial.cells[i], i, batch, cutter);
  }

  void furnish(const Cells &c, i64 i, i64 batch, Cutter &cutter) {
    const i64 rows = c.steps * batch, wide = gates_of(c.kind) * c.units;
    if (!c.backward) {
      SequenceRoom<T> &layer = layers[i];
      layer.wide = stride_of<T>(c.directions * c.units);
      layer.input = cutter.take<T>(rows * c.pitch);
      layer.error = cutter.take<T>(rows * layer.wide);
      layer.kept = cutter.take<T>(c.dropped >= 0 ? rows * layer.wide : 0);
    }
    CellRoom<T> &room = cells[i];
    room = {};
    room.gates = cutter.take<T>(rows * c.gates);
    room.state = cutter.take<T>((c.steps + 2) * batch * c.stride);
    if (c.kind != kLstm) room.fresh = cutter.take<T>(rows * c.gates);
    if (c.kind == kLstm) {
      room.cell = cutter.take<T>((c.steps + 2) * batch * c.stride);
      room.curved = cutter.take<T>(rows * c.stride);
      room.dc = cutter.take<T>(batch * c.stride);
    }
    room.dh = cutter.take<T>(batch * c.stride);
    room.bias = cutter.take<T>(c.gates);
    room.turned_hh = cutter.take<T>(round_up(wide, kBlock) * c.stride);
    room.turned_ih = cutter.take<T>(round_up(wide, kBlock) * stride_of<T>(c.features));
  }
};

// What dropout multiplies step t of a layer's output by: 0 or 1 / (1 - rate); see Dropout in layers.py.
template <typename T>
void keep_factors(const Trial<T> &trial, const Cells &c, i64 step, i64 t, i64 rows, i64 wide, T *kept) {
  const u32 key = layer_key(trial.seed, step, static_cast<u32>(c.dropped));
  const u32 second = mix(key ^ kGolden);
  const u32 threshold = static_cast<u32>(trial.dropout * 4294967296.0);
  const T scale = static_cast<T>(1.0 / (1.0 - trial.dropout));
  const i64 width = c.directions * c.units;
  for (i64 r = 0; r < rows; ++r, kept += wide) {
    const u32 first = mix(static_cast<u32>(r) * kGolden + key);
    for (i64 j = 0; j < width; ++j)
      kept[j] = word(first, second, static_cast<u32>(t * width + j)) >= threshold ? scale : T(0);
  }
}

// Copy step t of a layer's states [B, D·H] to rows of `pitch`, dropped out where that is asked.
template <typename T>
void copy_step(const Trial<T> &trial, SequenceSpace<T> &space, i64 first, i64 t, i64 rows, i64 step,
               bool drops, T *to, i64 pitch, i64 from_direction, i64 to_direction) {
  const Cells &c = trial.cells[first];
  const SequenceRoom<T> &layer = space.layers[first];
  T *kept = drops ? layer.kept + t * rows * layer.wide : nullptr;
  if (drops) keep_factors<T>(trial, c, step, t, rows, layer.wide, kept);
  for (i64 d = from_direction; d < to_direction; ++d) {
    const T *state = space.cells[first + d].state + (t + 1) * rows * c.stride;
    for (i64 r = 0; r < rows; ++r)
      for (i64 h = 0; h < c.units; ++h) {
        const i64 j = d * c.units + h;
        const T value = state[r * c.stride + h];
        if (!drops) to[r * pitch + j] = value;
        else to[r * pitch + j] = kept[r * layer.wide + j] > T(0) ? value * kept[r * layer.wide + j] : T(0);
      }
  }
}

// From the first layer's input to the head's: the last step's state of each direction.
template <typename T>
void forward_sequences(const Trial<T> &trial, SequenceSpace<T> &space, i64 rows, i64 step,
                       bool training, T *head, i64 head_pitch) {
  const i64 D = trial.cells[0].directions;
  for (i64 first = 0; first < trial.cell_count; first += D) {
    const Cells &c = trial.cells[first];
    const bool drops = training && c.dropped >= 0 && trial.dropout > 0.0;
    for (i64 d = 0; d < D; ++d)
      run_cells<T>(trial, trial.cells[first + d], rows, space.layers[first].input, space.cells[first + d]);
    if (first + D < trial.cell_count) {
      const i64 pitch = trial.cells[first + D].pitch;
      T *next = space.layers[first + D].input;
      for (i64 t = 0; t < c.steps; ++t)
        copy_step<T>(trial, space, first, t, rows, step, drops, next + t * rows * pitch, pitch, 0, D);
      continue;
    }
    copy_step<T>(trial, space, first, c.steps - 1, rows, step, drops, head, head_pitch, 0, 1);
    if (D == 2) copy_step<T>(trial, space, first, 0, rows, step, drops, head, head_pitch, 1, 2);
  }
}

// The gradient by step t of a layer's output, from that by what `copy_step` made of it.
template <typename T>
void error_of(const SequenceRoom<T> &layer, i64 t, i64 rows, bool drops, i64 from, i64 to, const T *back,
              i64 pitch) {
  T *error = layer.error + t * rows * layer.wide;
  const T *kept = drops ? layer.kept + t * rows * layer.wide : nullptr;
  for (i64 r = 0; r < rows; ++r)
    for (i64 j = from; j < to; ++j) {
      const T value = back[r * pitch + j];
      error[r * layer.wide + j] = drops ? value * kept[r * layer.wide + j] : value;
    }
}

// Gradients of all recurrent weights, from the gradient by the head's input.
template <typename T>
void back_sequences(const Trial<T> &trial, SequenceSpace<T> &space, i64 rows, const T *head,
                    i64 head_pitch, T *gradient) {
  const i64 D = trial.cells[0].directions, H = trial.cells[0].units, S = trial.cells[0].steps;
  for (i64 first = trial.cell_count - D; first >= 0; first -= D) {
    const Cells &c = trial.cells[first];
    SequenceRoom<T> &layer = space.layers[first];
    const bool drops = c.dropped >= 0 && trial.dropout > 0.0;
    if (first + D == trial.cell_count) {
      std::memset(layer.error, 0, sizeof(T) * S * rows * layer.wide);
      error_of<T>(layer, S - 1, rows, drops, 0, H, head, head_pitch);
      if (D == 2) error_of<T>(layer, 0, rows, drops, H, 2 * H, head, head_pitch);
    }
    // The gradient by this layer's input takes that input's place, once both directions have read it.
    const i64 wide = first ? stride_of<T>(c.features) : 0;
    T *back = first ? space.layers[first - D].error : nullptr;
    for (i64 d = 0; d < D; ++d)
      back_cells<T>(trial, trial.cells[first + d], rows, layer, d * H, space.cells[first + d], gradient,
                    back, wide, d > 0);
    if (!first) continue;
    SequenceRoom<T> &below = space.layers[first - D];
    if (trial.cells[first - D].dropped >= 0 && trial.dropout > 0.0)
      for (i64 i = 0; i < S * rows * below.wide; ++i) below.error[i] *= below.kept[i];
  }
}

// Copy rows [S, F] into the first layer's input, step by step.
template <typename T>
void gather_sequences(const Cells &c, T *input, const T *data, const i64 *order, i64 rows) {
  for (i64 r = 0; r < rows; ++r) {
    const T *from = data + (order ? order[r] : r) * c.steps * c.features;
    for (i64 t = 0; t < c.steps; ++t)
      std::memcpy(input + (t * rows + r) * c.pitch, from + t * c.features, sizeof(T) * c.features);
  }
}
