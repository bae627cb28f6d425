// Conversions between float32 and other formats; branch-free, so that loops over them vectorise.
// Part of kernels.cpp.

struct f16_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static inline float to_float(float v) { return v; }
static inline float to_float(double v) { return static_cast<float>(v); }
static inline float to_float(uint8_t v) { return static_cast<float>(v); }
static inline float to_float(uint16_t v) { return static_cast<float>(v); }
static inline float to_float(int16_t v) { return static_cast<float>(v); }
static inline float to_float(bf16_t v) { return float_of(static_cast<uint32_t>(v.bits) << 16); }

static inline float to_float(f16_t v) {
  const uint32_t magnitude = (v.bits & 0x7fffu) << 13;
  // Moving the exponent bias from 15 to 127 by a product treats subnormals right, too.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  return float_of((magnitude >= 0x0f800000u ? special : finite) | sign);
}

static inline void store(float *to, float v) { *to = v; }
static inline void store(double *to, float v) { *to = v; }

static inline void store(bf16_t *to, float v) {  // round to nearest, ties to even
  const uint32_t bits = bits_of(v);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // By bits: compilers make branches of two NaN tests in a row.
  const uint32_t nan = static_cast<uint32_t>(-static_cast<int32_t>((bits & 0x7fffffffu) > 0x7f800000u));
  to->bits = static_cast<uint16_t>((rounded & ~nan) | (0x7fc0u & nan));
}

static inline void store(f16_t *to, float v) {  // round to nearest, ties to even
  const uint32_t bits = bits_of(v), sign = bits & 0x80000000u, size = bits ^ sign;
  const uint32_t odd = (size >> 13) & 1u;
  const uint32_t normal = (size - 0x37fff001u + odd) >> 13;  // rebias by -112, add half less one
  // Below 2^-14 the sum's unit in the last place is that of an f16 subnormal.
  const uint32_t subnormal = bits_of(float_of(size) + 0.5f) - 0x3f000000u;
  const uint32_t special = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t rounded = size < 0x38800000u ? subnormal : normal;
  to->bits = static_cast<uint16_t>((size >= 0x47800000u ? special : rounded) | (sign >> 16));
}
