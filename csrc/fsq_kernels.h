// FSQ kernels; part of kernels.cpp.
//
// Work goes through blocks that fit the first-level cache: load (any format, any layout) into
// float columns, one a channel; compare with the thresholds; pack; store. Plain loops over columns
// are what compilers vectorise well.

enum { BLOCK_FLOATS = 2048, LANES = 16, GROUP = 8 };

struct Span {  // where vectors i = 0..count-1 of a block lie in [outer, dims, inner]
  int64_t first;   // offset of vector 0, channel 0
  int64_t vector;  // distance of two vectors
  int64_t channel; // distance of two channels
};

// Call step with `n` as a type, Known<1> .. Known<8>, so that the compiler unrolls; false for others.
template <int N>
struct Known {
  enum { VALUE = N };
};

template <typename Step>
static inline bool with_known(int64_t n, const Step &step) {
  switch (n) {
    case 1: step(Known<1>()); return true;
    case 2: step(Known<2>()); return true;
    case 3: step(Known<3>()); return true;
    case 4: step(Known<4>()); return true;
    case 5: step(Known<5>()); return true;
    case 6: step(Known<6>()); return true;
    case 7: step(Known<7>()); return true;
    case 8: step(Known<8>()); return true;
    default: return false;
  }
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

#if defined(__AVX2__) && !defined(__AVX512F__)
// Small blocks take turns with memory more often; measured on machines without AVX-512 only.
enum { FEW_DIMS = 8, FEW_FLOATS = 512, PREFETCH_BYTES = 8192 };
#else
enum { FEW_DIMS = 8, FEW_FLOATS = BLOCK_FLOATS };
#endif

// Vectors in a block: a multiple of the lanes, so that a block's columns start aligned.
static inline int64_t block_size(int64_t dims) {
  int64_t floats = FEW_FLOATS;
  if (dims > FEW_DIMS) floats = BLOCK_FLOATS;
  return floats / dims / LANES * LANES;
}

// The block at flat position `at` of outer * inner; a block never crosses an outer row.
static inline int64_t locate(int64_t at, int64_t end, int64_t dims, int64_t inner, Span *span) {
  int64_t count = smaller(end - at, block_size(dims));
  if (inner == 1) {
    span->first = at * dims;
    span->vector = dims;
    span->channel = 1;
    return count;
  }
  const int64_t row = at / inner, col = at - row * inner;
  span->first = row * dims * inner + col;
  span->vector = 1;
  span->channel = inner;
  return smaller(count, inner - col);
}

template <typename T>
static void load_column(const T *from, int64_t step, int64_t count, float *column) {
  if (step == 1) {
    for (int64_t i = 0; i < count; ++i) column[i] = to_float(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) column[i] = to_float(from[i * step]);
  }
}

template <typename T>
static void store_column(const float *column, int64_t step, int64_t count, T *to) {
  if (step == 1) {
    for (int64_t i = 0; i < count; ++i) store(to + i, column[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) store(to + i * step, column[i]);
  }
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Eight vectors of an odd number of channels fill as many registers. Channel c of vector i is at place
// i * DIMS + c, and as DIMS and 8 have no common factor, a channel's eight values lie in eight different
// lanes: they come together by blends and one permutation, and go apart the same way.
template <int DIMS>
struct Braid {
  static constexpr int place(int c, int i) { return i * DIMS + c; }
  static constexpr int vector_in(int c, int lane) {
    int i = 0;
    while (place(c, i) % 8 != lane) ++i;
    return i;
  }
  // The lanes in which register r holds channel c.
  static constexpr int lanes(int c, int r) {
    int mask = 0;
    for (int i = 0; i < 8; ++i) mask |= place(c, i) / 8 == r ? 1 << place(c, i) % 8 : 0;
    return mask;
  }
};

template <int DIMS, int C>
static inline __m256i lanes_of_vectors() {
  typedef Braid<DIMS> B;
  return _mm256_setr_epi32(B::place(C, 0) % 8, B::place(C, 1) % 8, B::place(C, 2) % 8, B::place(C, 3) % 8,
                           B::place(C, 4) % 8, B::place(C, 5) % 8, B::place(C, 6) % 8, B::place(C, 7) % 8);
}

template <int DIMS, int C>
static inline __m256i vectors_of_lanes() {
  typedef Braid<DIMS> B;
  return _mm256_setr_epi32(B::vector_in(C, 0), B::vector_in(C, 1), B::vector_in(C, 2), B::vector_in(C, 3),
                           B::vector_in(C, 4), B::vector_in(C, 5), B::vector_in(C, 6), B::vector_in(C, 7));
}

// Channel C's lanes of registers 0..R.
template <int DIMS, int C, int R>
static inline __m256 blend_registers(const __m256 *registers) {
  if constexpr (R == 0) {
    return registers[0];
  } else {
    constexpr int mask = Braid<DIMS>::lanes(C, R);  // without optimisation the blend is a macro
    const __m256 before = blend_registers<DIMS, C, R - 1>(registers);
    return _mm256_blend_ps(before, registers[R], mask);
  }
}

// Register R's lanes of channels 0..C.
template <int DIMS, int R, int C>
static inline __m256 blend_channels(const __m256 *channels) {
  if constexpr (C == 0) {
    return channels[0];
  } else {
    constexpr int mask = Braid<DIMS>::lanes(C, R);
    const __m256 before = blend_channels<DIMS, R, C - 1>(channels);
    return _mm256_blend_ps(before, channels[C], mask);
  }
}

template <int DIMS, int C = 0>
static inline void unbraid(const __m256 *registers, int64_t stride, float *columns) {
  if constexpr (C < DIMS) {
    const __m256 mixed = blend_registers<DIMS, C, DIMS - 1>(registers);
    _mm256_store_ps(columns + C * stride, _mm256_permutevar8x32_ps(mixed, lanes_of_vectors<DIMS, C>()));
    unbraid<DIMS, C + 1>(registers, stride, columns);
  }
}

template <int DIMS, int C = 0>
static inline void permute_channels(const float *columns, int64_t stride, __m256 *channels) {
  if constexpr (C < DIMS) {
    const __m256 column = _mm256_load_ps(columns + C * stride);
    channels[C] = _mm256_permutevar8x32_ps(column, vectors_of_lanes<DIMS, C>());
    permute_channels<DIMS, C + 1>(columns, stride, channels);
  }
}

template <int DIMS, int R = 0>
static inline void store_braid(const __m256 *channels, float *to) {
  if constexpr (R < DIMS) {
    _mm256_storeu_ps(to + 8 * R, blend_channels<DIMS, R, DIMS - 1>(channels));
    store_braid<DIMS, R + 1>(channels, to);
  }
}

static inline __m256 load_eight(const float *from) { return _mm256_loadu_ps(from); }
static inline __m256 load_eight(const bf16_t *from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// Ask for the cache lines of SIZE bytes some blocks ahead, where there may be nothing: memory works while the
// digits of this block are counted.
template <int SIZE>
static inline void prefetch(const void *from) {
  const uintptr_t ahead = reinterpret_cast<uintptr_t>(from) + PREFETCH_BYTES;
  for (int line = 0; line < SIZE; line += 64) _mm_prefetch(reinterpret_cast<const char *>(ahead + line), _MM_HINT_T0);
}

// Vectors that come by eights; the rest is for the caller.
template <typename T, int DIMS>
static inline int64_t load_eights(const T *from, int64_t count, int64_t stride, float *columns) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 registers[DIMS];
    prefetch<DIMS * 8 * sizeof(T)>(from + i * DIMS);
    for (int r = 0; r < DIMS; ++r) registers[r] = load_eight(from + i * DIMS + 8 * r);
    unbraid<DIMS>(registers, stride, columns + i);
  }
  return i;
}

template <int DIMS>
static inline int64_t store_eights(const float *columns, int64_t count, int64_t stride, float *to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 channels[DIMS];
    permute_channels<DIMS>(columns + i, stride, channels);
    store_braid<DIMS>(channels, to + i * DIMS);
  }
  return i;
}

enum { BRAIDS = 1 };
#else
enum { BRAIDS = 0 };
template <typename T, int DIMS>
static inline int64_t load_eights(const T *, int64_t, int64_t, float *) { return 0; }
template <int DIMS>
static inline int64_t store_eights(const float *, int64_t, int64_t, float *) { return 0; }
#endif

template <typename T>
struct Braided {
  enum { LOADS = 0, STORES = 0 };
};
template <>
struct Braided<float> {
  enum { LOADS = BRAIDS, STORES = BRAIDS };
};
template <>
struct Braided<bf16_t> {
  enum { LOADS = BRAIDS, STORES = 0 };
};

// All channels of channel-last vectors in one pass over memory; DIMS is known to the compiler.
template <typename T, int DIMS>
static void load_vectors(const T *from, int64_t count, int64_t stride, float *columns) {
  int64_t i = 0;
  if constexpr (Braided<T>::LOADS && DIMS % 2 == 1) i = load_eights<T, DIMS>(from, count, stride, columns);
  for (; i < count; ++i)
    for (int c = 0; c < DIMS; ++c) columns[c * stride + i] = to_float(from[i * DIMS + c]);
}

template <typename T, int DIMS>
static void store_vectors(const float *columns, int64_t count, int64_t stride, T *to) {
  int64_t i = 0;
  if constexpr (Braided<T>::STORES && DIMS % 2 == 1) i = store_eights<DIMS>(columns, count, stride, to);
  for (; i < count; ++i)
    for (int c = 0; c < DIMS; ++c) store(to + i * DIMS + c, columns[c * stride + i]);
}

template <typename T>
static void load_block(const T *data, const Span &span, int64_t dims, int64_t count, int64_t stride,
                       float *columns) {
  const T *from = data + span.first;
  const bool packed = span.channel == 1 && span.vector == dims;
  if (packed && with_known(dims, [=](auto n) { load_vectors<T, decltype(n)::VALUE>(from, count, stride, columns); }))
    return;
  for (int64_t c = 0; c < dims; ++c)
    load_column(from + c * span.channel, span.vector, count, columns + c * stride);
}

template <typename T>
static void store_block(const float *columns, const Span &span, int64_t dims, int64_t count, int64_t stride,
                        T *data) {
  T *to = data + span.first;
  const bool packed = span.channel == 1 && span.vector == dims;
  if (packed && with_known(dims, [=](auto n) { store_vectors<T, decltype(n)::VALUE>(columns, count, stride, to); }))
    return;
  for (int64_t c = 0; c < dims; ++c) store_column(columns + c * stride, span.vector, count, to + c * span.channel);
}

// ---------------------------------------------------------------- digits

struct Place {  // what a channel's digits become
  int32_t basis;
  float shift, span;
};

static inline float code_of(int32_t digit, const Place &place) {
  // A division, as in the definition: a product with 1 / span would differ in the last bit.
  return (static_cast<float>(digit) - place.shift) / place.span;
}

// One more where `above`, written so that compilers need two instructions for it.
static inline int32_t counted(int32_t digit, bool above) {
#if defined(__AVX512F__)
  return above ? digit + 1 : digit;  // a sum under a mask
#else
  return digit + (above ? 1 : 0);  // a comparison gives 0 or -1: a difference
#endif
}

// Add the digits of a column to the indices and, where wanted, turn it into codes: all in one pass.
template <int COUNT, bool CODES>
static void quantize_few(float *column, int64_t count, const float *thresholds, const Place &place, int32_t *indices) {
  float edges[COUNT];
  for (int k = 0; k < COUNT; ++k) edges[k] = thresholds[k];
  for (int64_t i = 0; i < count; ++i) {
    const float value = column[i];
    int32_t digit = 0;
    for (int k = 0; k < COUNT; ++k) digit = counted(digit, value > edges[k]);
    indices[i] += digit * place.basis;
    if (CODES) column[i] = code_of(digit, place);
  }
}

static void count_exceeded_loop(const float *column, int64_t count, const float *thresholds, int32_t total,
                                int32_t *digits) {
  for (int64_t i = 0; i < count; ++i) digits[i] = 0;
  for (int32_t k = 0; k < total; ++k) {
    const float threshold = thresholds[k];
    for (int64_t i = 0; i < count; ++i) digits[i] += column[i] > threshold ? 1 : 0;
  }
}

// The same number for ascending thresholds, by halving: for levels too many to compare with all.
static void search_exceeded(const float *column, int64_t count, const float *thresholds, int32_t total,
                            int32_t *digits) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = column[i];
    int32_t low = 0, size = total;
    while (size > 0) {
      const int32_t half = size / 2;
      const bool above = value > thresholds[low + half];
      low = above ? low + half + 1 : low;
      size = above ? size - half - 1 : half;
    }
    digits[i] = low;
  }
}

// The same for any number of thresholds.
static void quantize_many(float *column, int64_t count, const float *thresholds, int32_t total, bool codes,
                          const Place &place, int32_t *indices) {
  int32_t digits[BLOCK_FLOATS];
  if (total <= 64)
    count_exceeded_loop(column, count, thresholds, total, digits);
  else
    search_exceeded(column, count, thresholds, total, digits);
  for (int64_t i = 0; i < count; ++i) indices[i] += digits[i] * place.basis;
  if (codes)
    for (int64_t i = 0; i < count; ++i) column[i] = code_of(digits[i], place);
}

// Columns to indices (or NULL) and, in place, to codes where wanted.
static void quantize_columns(const tmc_grid &grid, float *columns, int64_t count, int64_t stride, bool codes,
                             int32_t *indices) {
  int32_t unwanted[BLOCK_FLOATS];
  if (indices == nullptr) indices = unwanted;
  for (int64_t i = 0; i < count; ++i) indices[i] = 0;
  const float *thresholds = grid.thresholds;
  int32_t basis = 1;
  for (int32_t c = 0; c < grid.dims; ++c) {
    float *column = columns + c * stride;
    const int32_t total = grid.levels[c] - 1;
    const Place place = {basis, grid.code_shift[c], grid.code_span[c]};
    const bool few = with_known(total, [=](auto n) {
      const auto quantize_column = codes ? quantize_few<decltype(n)::VALUE, true> : quantize_few<decltype(n)::VALUE, false>;
      quantize_column(column, count, thresholds, place, indices);
    });
    if (!few) quantize_many(column, count, thresholds, total, codes, place, indices);
    thresholds += total;
    if (c + 1 < grid.dims) basis *= grid.levels[c];
  }
}

template <typename T>
static void quantize_part(const tmc_grid &grid, const void *latents, int64_t inner, float *codes,
                          int32_t *indices, int64_t begin, int64_t end) {
  alignas(64) float columns[BLOCK_FLOATS];
  const int64_t dims = grid.dims, stride = block_size(dims);
  for (int64_t at = begin; at < end;) {
    Span span;
    const int64_t count = locate(at, end, dims, inner, &span);
    load_block(static_cast<const T *>(latents), span, dims, count, stride, columns);
    quantize_columns(grid, columns, count, stride, codes != nullptr, indices != nullptr ? indices + at : nullptr);
    if (codes != nullptr) store_block(columns, span, dims, count, stride, codes);
    at += count;
  }
}

static void quantize(const tmc_grid &grid, const void *latents, int32_t dtype, int64_t inner, float *codes,
                     int32_t *indices, int64_t begin, int64_t end) {
  switch (dtype) {
    case TMC_F32: return quantize_part<float>(grid, latents, inner, codes, indices, begin, end);
    case TMC_F64: return quantize_part<double>(grid, latents, inner, codes, indices, begin, end);
    case TMC_F16: return quantize_part<f16_t>(grid, latents, inner, codes, indices, begin, end);
    default: return quantize_part<bf16_t>(grid, latents, inner, codes, indices, begin, end);
  }
}

// ---------------------------------------------------------------- codes

// Split indices into code columns. (index + 1/2) / level in float64 lies far enough from an
// integer (1 / 2 level) to give the exact floor, negative indices included.
static void split_indices(const tmc_grid &grid, const int32_t *indices, int64_t count, int64_t stride,
                          float *columns) {
  int32_t rest[BLOCK_FLOATS];
  for (int64_t i = 0; i < count; ++i) rest[i] = indices[i];
  for (int32_t c = 0; c < grid.dims; ++c) {
    const int32_t level = grid.levels[c];
    const double inverse = 1.0 / level;
    const float shift = grid.code_shift[c], span = grid.code_span[c];
    float *column = columns + c * stride;
    for (int64_t i = 0; i < count; ++i) {
      const double ratio = (rest[i] + 0.5) * inverse;
      const int32_t towards_zero = static_cast<int32_t>(ratio);
      const int32_t quotient = towards_zero - (ratio < towards_zero ? 1 : 0);
      column[i] = (static_cast<float>(rest[i] - quotient * level) - shift) / span;
      rest[i] = quotient;
    }
  }
}

static void dequantize(const tmc_grid &grid, const int32_t *indices, int64_t inner, float *codes, int64_t begin,
                       int64_t end) {
  alignas(64) float columns[BLOCK_FLOATS];
  const int64_t dims = grid.dims, stride = block_size(dims);
  for (int64_t at = begin; at < end;) {
    Span span;
    const int64_t count = locate(at, end, dims, inner, &span);
    split_indices(grid, indices + at, count, stride, columns);
    store_block(columns, span, dims, count, stride, codes);
    at += count;
  }
}

// ---------------------------------------------------------------- gradients

// exp(x) for x <= 0, within two units in the last place: 2^n times a polynomial on [-ln2/2, ln2/2]
// (Cephes' coefficients). NaN stays NaN.
static inline float exp_negative(float x) {
  const float biased = x * 1.44269504088896341f + 12582912.0f;  // rounds to an integer in the low bits
  const float n = biased - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = float_of((bits_of(biased) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : p * scale;
}

static void scale_gradients(float rate, float shift, float gain, const float *z, int64_t count, float *gradients) {
  for (int64_t i = 0; i < count; ++i) {
    const float moved = z[i] + shift;
    const float e = exp_negative(-rate * (moved < 0.0f ? -moved : moved));
    gradients[i] *= gain * e / ((1.0f + e) * (1.0f + e));
  }
}

template <typename T>
static void backward_part(const tmc_grid &grid, const void *latents, const float *grad_codes, int64_t inner,
                          void *grad_latents, int64_t begin, int64_t end) {
  alignas(64) float columns[BLOCK_FLOATS], gradients[BLOCK_FLOATS];
  const int64_t dims = grid.dims, stride = block_size(dims);
  for (int64_t at = begin; at < end;) {
    Span span;
    const int64_t count = locate(at, end, dims, inner, &span);
    load_block(static_cast<const T *>(latents), span, dims, count, stride, columns);
    load_block(grad_codes, span, dims, count, stride, gradients);
    for (int32_t c = 0; c < grid.dims; ++c)
      scale_gradients(grid.grad_rate, grid.grad_shift[c], grid.grad_gain[c], columns + c * stride, count,
                      gradients + c * stride);
    store_block(gradients, span, dims, count, stride, static_cast<T *>(grad_latents));
    at += count;
  }
}

static void backward(const tmc_grid &grid, const void *latents, int32_t dtype, const float *grad_codes,
                     int64_t inner, void *grad_latents, int64_t begin, int64_t end) {
  switch (dtype) {
    case TMC_F32: return backward_part<float>(grid, latents, grad_codes, inner, grad_latents, begin, end);
    case TMC_F64: return backward_part<double>(grid, latents, grad_codes, inner, grad_latents, begin, end);
    case TMC_F16: return backward_part<f16_t>(grid, latents, grad_codes, inner, grad_latents, begin, end);
    default: return backward_part<bf16_t>(grid, latents, grad_codes, inner, grad_latents, begin, end);
  }
}

// ---------------------------------------------------------------- fused projections

// Sixteen lanes in as many registers as the machine needs for them: the sums are the same on all.
#if defined(__AVX512F__)
enum { PART = 16 };
#elif defined(__AVX__)
enum { PART = 8 };
#else
enum { PART = 4 };
#endif
typedef float Register __attribute__((vector_size(PART * sizeof(float))));
typedef float InMemory __attribute__((vector_size(PART * sizeof(float)), aligned(4), may_alias));

struct Lanes {
  Register parts[LANES / PART];
};

static inline void load_lanes(const float *from, Lanes *lanes) {
  for (int p = 0; p < LANES / PART; ++p) lanes->parts[p] = *reinterpret_cast<const InMemory *>(from + p * PART);
}

template <typename T>
static inline void load_lanes(const T *from, Lanes *lanes) {
  alignas(64) float values[LANES];
  for (int l = 0; l < LANES; ++l) values[l] = to_float(from[l]);
  load_lanes(values, lanes);
}

static inline void add_products(const Lanes &value, const float *weight, Lanes *total) {
  for (int p = 0; p < LANES / PART; ++p)
    total->parts[p] += value.parts[p] * *reinterpret_cast<const InMemory *>(weight + p * PART);
}

static inline float sum_lanes(const Lanes &lanes) {
  float values[LANES];
  memcpy(values, &lanes, sizeof values);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) values[l] += values[l + half];
  return values[0];
}

// Dot products of one row with CHANNELS rows of weight, whose rows are padded with zeros.
template <typename T, int CHANNELS>
static void dot_rows(const T *x, int64_t dim, const float *weight, int64_t padded, float *sums) {
  Lanes total[CHANNELS], value;
  memset(total, 0, sizeof total);
  int64_t j = 0;
  for (; j + LANES <= dim; j += LANES) {
    load_lanes(x + j, &value);
    for (int c = 0; c < CHANNELS; ++c) add_products(value, weight + c * padded + j, &total[c]);
  }
  if (j < dim) {
    alignas(64) float tail[LANES] = {0};
    for (int64_t l = 0; j + l < dim; ++l) tail[l] = to_float(x[j + l]);
    load_lanes(tail, &value);
    for (int c = 0; c < CHANNELS; ++c) add_products(value, weight + c * padded + j, &total[c]);
  }
  for (int c = 0; c < CHANNELS; ++c) sums[c] = sum_lanes(total[c]);
}

template <typename T>
static void project_row(const T *x, int64_t dim, const float *weight, int64_t padded, const float *bias,
                        int64_t dims, int64_t stride, float *column) {
  for (int64_t c = 0; c < dims; c += GROUP) {
    float sums[GROUP];
    const int64_t channels = smaller(GROUP, dims - c);
    with_known(channels, [&](auto n) { dot_rows<T, decltype(n)::VALUE>(x, dim, weight + c * padded, padded, sums); });
    for (int64_t g = 0; g < channels; ++g)
      column[(c + g) * stride] = bias != nullptr ? sums[g] + bias[c + g] : sums[g];
  }
}

template <typename T>
static void project_part(const tmc_grid &grid, const void *x, const Projection &projection,
                         const Quantized &out, int64_t begin, int64_t end) {
  alignas(64) float columns[BLOCK_FLOATS];
  const int64_t dims = grid.dims, stride = block_size(dims);
  for (int64_t at = begin; at < end;) {
    Span span;
    const int64_t count = locate(at, end, dims, 1, &span);
    const T *rows = static_cast<const T *>(x) + at * projection.dim;
    for (int64_t i = 0; i < count; ++i)
      project_row(rows + i * projection.dim, projection.dim, projection.weight, projection.padded,
                  projection.bias, dims, stride, columns + i);
    if (out.latents != nullptr) store_block(columns, span, dims, count, stride, out.latents);
    quantize_columns(grid, columns, count, stride, out.codes != nullptr,
                     out.indices != nullptr ? out.indices + at : nullptr);
    if (out.codes != nullptr) store_block(columns, span, dims, count, stride, out.codes);
    at += count;
  }
}

static void project_quantize(const tmc_grid &grid, const void *x, int32_t dtype, const Projection &projection,
                             const Quantized &out, int64_t begin, int64_t end) {
  switch (dtype) {
    case TMC_F32: return project_part<float>(grid, x, projection, out, begin, end);
    case TMC_F64: return project_part<double>(grid, x, projection, out, begin, end);
    case TMC_F16: return project_part<f16_t>(grid, x, projection, out, begin, end);
    default: return project_part<bf16_t>(grid, x, projection, out, begin, end);
  }
}

// One output row, a strip at a time, so that the sums stay in registers and cache.
template <typename T>
static void expand_row(const float *code, int64_t stride, int64_t dims, const Projection &projection, T *out) {
  enum { STRIP = 256 };
  alignas(64) float sums[STRIP];
  for (int64_t at = 0; at < projection.dim; at += STRIP) {
    const int64_t count = smaller(STRIP, projection.dim - at);
    if (projection.bias != nullptr)
      for (int64_t j = 0; j < count; ++j) sums[j] = projection.bias[at + j];
    else
      for (int64_t j = 0; j < count; ++j) sums[j] = 0.0f;
    for (int64_t c = 0; c < dims; ++c) {
      const float value = code[c * stride];
      const float *row = projection.weight + c * projection.padded + at;
      for (int64_t j = 0; j < count; ++j) sums[j] += value * row[j];
    }
    store_column(sums, 1, count, out + at);
  }
}

template <typename T>
static void expand_part(const tmc_grid &grid, const int32_t *indices, const Projection &projection, void *out,
                        int64_t begin, int64_t end) {
  alignas(64) float columns[BLOCK_FLOATS];
  const int64_t dims = grid.dims, stride = block_size(dims);
  for (int64_t at = begin; at < end;) {
    const int64_t count = smaller(end - at, stride);
    split_indices(grid, indices + at, count, stride, columns);
    for (int64_t i = 0; i < count; ++i)
      expand_row(columns + i, stride, dims, projection, static_cast<T *>(out) + (at + i) * projection.dim);
    at += count;
  }
}

static void dequantize_project(const tmc_grid &grid, const int32_t *indices, const Projection &projection,
                               void *out, int32_t dtype, int64_t begin, int64_t end) {
  switch (dtype) {
    case TMC_F32: return expand_part<float>(grid, indices, projection, out, begin, end);
    case TMC_F64: return expand_part<double>(grid, indices, projection, out, begin, end);
    case TMC_F16: return expand_part<f16_t>(grid, indices, projection, out, begin, end);
    default: return expand_part<bf16_t>(grid, indices, projection, out, begin, end);
  }
}
