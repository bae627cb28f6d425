// Raster kernels, one row each; part of kernels.cpp.

// Clamped to low..high and rounded half to even: adding 1.5 * 2^23 leaves no place for a fraction.
static inline float whole(float value, float low, float high) {
  const float clamped = value < low ? low : value > high ? high : value;
  return (clamped + 12582912.0f) - 12582912.0f;
}

static inline void put(float *to, float value) { *to = value; }
static inline void put(f16_t *to, float value) { store(to, value); }
static inline void put(bf16_t *to, float value) { store(to, value); }
static inline void put(uint8_t *to, float value) { *to = static_cast<uint8_t>(static_cast<int32_t>(whole(value, 0.0f, 255.0f))); }
static inline void put(uint16_t *to, float value) { *to = static_cast<uint16_t>(static_cast<int32_t>(whole(value, 0.0f, 65535.0f))); }
static inline void put(int16_t *to, float value) { *to = static_cast<int16_t>(static_cast<int32_t>(whole(value, -32768.0f, 32767.0f))); }

static inline float known_or(float value, float fill) { return value == value ? value : fill; }

// Values as bits of their size, whatever their type.
template <int SIZE> struct WordOf;
template <> struct WordOf<1> { typedef uint8_t __attribute__((may_alias)) Word; };
template <> struct WordOf<2> { typedef uint16_t __attribute__((may_alias)) Word; };
template <> struct WordOf<4> { typedef uint32_t __attribute__((may_alias)) Word; };

// Replace what the mask says is unknown: a loop of its own, by bits, so that nothing branches.
template <typename Out>
static void apply_mask(const uint8_t *mask, int64_t count, float fill, Out *values) {
  typedef typename WordOf<sizeof(Out)>::Word Word;
  Out filler;
  put(&filler, fill);
  const Word other = *reinterpret_cast<const Word *>(&filler);
  Word *words = reinterpret_cast<Word *>(values);
  for (int64_t i = 0; i < count; ++i) {
    const Word keep = static_cast<Word>(mask[i] != 0 ? -1 : 0);
    words[i] = static_cast<Word>((words[i] & keep) | (other & static_cast<Word>(~keep)));
  }
}

template <typename In, typename Out>
static void normalize_values(const In *from, const uint8_t *mask, int64_t count, float mean, float std, float fill,
                             Out *to) {
  for (int64_t i = 0; i < count; ++i) put(to + i, known_or((to_float(from[i]) - mean) / std, fill));
  if (mask != nullptr) apply_mask(mask, count, fill, to);
}

template <typename In>
static void normalize_row(const In *from, const uint8_t *mask, int64_t count, float mean, float std, float fill,
                          void *tiles, int32_t tile_dtype, int64_t at) {
  switch (tile_dtype) {
    case TMC_F32: return normalize_values(from, mask, count, mean, std, fill, static_cast<float *>(tiles) + at);
    case TMC_F16: return normalize_values(from, mask, count, mean, std, fill, static_cast<f16_t *>(tiles) + at);
    default: return normalize_values(from, mask, count, mean, std, fill, static_cast<bf16_t *>(tiles) + at);
  }
}

// Values `from`.. of the raster to values `at`.. of the tiles.
static void normalize(const void *raster, int32_t dtype, int64_t from, const uint8_t *mask, int64_t count,
                      float mean, float std, float fill, void *tiles, int32_t tile_dtype, int64_t at) {
  switch (dtype) {
    case TMC_U8:
      return normalize_row(static_cast<const uint8_t *>(raster) + from, mask, count, mean, std, fill, tiles, tile_dtype, at);
    case TMC_U16:
      return normalize_row(static_cast<const uint16_t *>(raster) + from, mask, count, mean, std, fill, tiles, tile_dtype, at);
    case TMC_I16:
      return normalize_row(static_cast<const int16_t *>(raster) + from, mask, count, mean, std, fill, tiles, tile_dtype, at);
    default:
      return normalize_row(static_cast<const float *>(raster) + from, mask, count, mean, std, fill, tiles, tile_dtype, at);
  }
}

template <typename Out>
static void fill_values(int64_t count, float fill, Out *to) {
  for (int64_t i = 0; i < count; ++i) store(to + i, fill);
}

static void fill_row(int64_t count, float fill, void *tiles, int32_t tile_dtype, int64_t at) {
  switch (tile_dtype) {
    case TMC_F32: return fill_values(count, fill, static_cast<float *>(tiles) + at);
    case TMC_F16: return fill_values(count, fill, static_cast<f16_t *>(tiles) + at);
    default: return fill_values(count, fill, static_cast<bf16_t *>(tiles) + at);
  }
}

// ---------------------------------------------------------------- blend

template <typename In>
static void add_values(const In *tile, float row_weight, const float *col_weights, int64_t count, float *sums,
                       float *weights) {
  for (int64_t i = 0; i < count; ++i) {
    const float weight = row_weight * col_weights[i];
    const float value = to_float(tile[i]);
    sums[i] += weight != 0.0f ? weight * value : 0.0f;  // a pixel that does not count may be NaN
    weights[i] += weight;
  }
}

// Add values `from`.. of the tiles, weighted, to `sums`, and the weights to `weights`.
static void add_row(const void *tiles, int32_t tile_dtype, int64_t from, float row_weight, const float *col_weights,
                    int64_t count, float *sums, float *weights) {
  switch (tile_dtype) {
    case TMC_F32:
      return add_values(static_cast<const float *>(tiles) + from, row_weight, col_weights, count, sums, weights);
    case TMC_F16:
      return add_values(static_cast<const f16_t *>(tiles) + from, row_weight, col_weights, count, sums, weights);
    default:
      return add_values(static_cast<const bf16_t *>(tiles) + from, row_weight, col_weights, count, sums, weights);
  }
}

template <typename Out>
static void write_values(const float *sums, const float *weights, const uint8_t *mask, int64_t count, float mean,
                         float std, float fill, Out *to) {
  for (int64_t i = 0; i < count; ++i)  // no weight: 0 / 0, NaN
    put(to + i, known_or(sums[i] / weights[i] * std + mean, fill));
  if (mask != nullptr) apply_mask(mask, count, fill, to);
}

static void write_row(const float *sums, const float *weights, const uint8_t *mask, int64_t count, float mean,
                      float std, float fill, void *raster, int32_t dtype, int64_t at) {
  switch (dtype) {
    case TMC_U8: return write_values(sums, weights, mask, count, mean, std, fill, static_cast<uint8_t *>(raster) + at);
    case TMC_U16: return write_values(sums, weights, mask, count, mean, std, fill, static_cast<uint16_t *>(raster) + at);
    case TMC_I16: return write_values(sums, weights, mask, count, mean, std, fill, static_cast<int16_t *>(raster) + at);
    default: return write_values(sums, weights, mask, count, mean, std, fill, static_cast<float *>(raster) + at);
  }
}
