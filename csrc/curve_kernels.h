// Companding fused with what lies next to it, one row at a time; part of kernels.cpp.
//
// Every operation is rounded to float32, in the order of tmcodec/networks/compand.py and of
// avg_pool2d, so that all machines give the same bits. (PyTorch's square root may be MKL's, which
// is one unit in the last place off now and then.)

static inline float sign_of(float v) { return static_cast<float>((v > 0.0f) - (v < 0.0f)); }

// Physical values to normalised ones.
static void compress_row(const float *from, int64_t count, const tmc_curve &curve, float mean, float std, float *to) {
  const float origin = curve.origin, knee = curve.knee, root = curve.root;
  if (curve.kind == TMC_SQRT) {
    for (int64_t i = 0; i < count; ++i) {
      const float u = from[i] - origin;
      to[i] = (sign_of(u) * (__builtin_sqrtf(__builtin_fabsf(u) + knee) - root) - mean) / std;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = (from[i] - origin - mean) / std;
  }
}

// Means of 2x2 pixels, added row by row as avg_pool2d does.
static void halve_rows(const float *top, const float *bottom, int64_t count, float *half) {
  for (int64_t i = 0; i < count; ++i)
    half[i] = (((top[2 * i] + top[2 * i + 1]) + bottom[2 * i]) + bottom[2 * i + 1]) * 0.25f;
}

enum { STRIP = 256 };  // pixels of the halved row that are worked on at once

// Two rows of a band to one of half the length.
static void compand_pool(const float *top, const float *bottom, int64_t count, const tmc_curve &curve, float mean,
                         float std, float *half) {
  alignas(64) float first[2 * STRIP], second[2 * STRIP];
  for (int64_t at = 0; at < count; at += STRIP) {
    const int64_t n = smaller(STRIP, count - at);
    compress_row(top + 2 * at, 2 * n, curve, mean, std, first);
    compress_row(bottom + 2 * at, 2 * n, curve, mean, std, second);
    halve_rows(first, second, n, half + at);
  }
}

// Rows of all channels, `stride` apart, to pixels of `channels` values: `cell` of them lie together,
// then come the other rows of the cell, `step` values further.
static void interleave(const float *planes, int64_t channels, int64_t stride, int64_t count, int64_t cell,
                       int64_t step, float *cells) {
  for (int64_t at = 0; at < count; at += cell) {
    float *to = cells + at / cell * step;
    for (int64_t c = 0; c < channels; ++c) {
      const float *from = planes + c * stride + at;
      for (int64_t i = 0; i < cell; ++i) to[i * channels + c] = from[i];
    }
  }
}

// ---------------------------------------------------------------- back

static inline float limited(float value, float low, float high) {
  return value < low ? low : value > high ? high : value;  // NaN stays
}

// Normalised values to physical ones, in place.
static void uncurve_row(const tmc_curve &curve, float mean, float std, float low, float high, int64_t count,
                       float *values) {
  const float origin = curve.origin, knee = curve.knee, root = curve.root;
  if (curve.kind == TMC_SQRT) {
    for (int64_t i = 0; i < count; ++i) {
      const float y = values[i] * std + mean, size = __builtin_fabsf(y) + root;
      values[i] = limited(sign_of(y) * (size * size - knee) + origin, low, high);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) values[i] = limited(values[i] * std + mean + origin, low, high);
  }
}

// One row of twice the length: `middle` counts 3/4, `other` (the row above or below) 1/4, and the same
// along the row, whose ends repeat.
static void double_row(const float *middle, const float *other, int64_t width, const tmc_curve &curve, float mean,
                       float std, float low, float high, float *to) {
  alignas(64) float mixed[STRIP + 2], left[STRIP], right[STRIP];
  for (int64_t at = 0; at < width; at += STRIP) {
    const int64_t n = smaller(STRIP, width - at);
    for (int64_t i = 0; i < n; ++i) mixed[i + 1] = 0.75f * middle[at + i] + 0.25f * other[at + i];
    mixed[0] = at > 0 ? 0.75f * middle[at - 1] + 0.25f * other[at - 1] : mixed[1];
    mixed[n + 1] = at + n < width ? 0.75f * middle[at + n] + 0.25f * other[at + n] : mixed[n];
    for (int64_t i = 0; i < n; ++i) left[i] = 0.75f * mixed[i + 1] + 0.25f * mixed[i];
    for (int64_t i = 0; i < n; ++i) right[i] = 0.75f * mixed[i + 1] + 0.25f * mixed[i + 2];
    uncurve_row(curve, mean, std, low, high, n, left);
    uncurve_row(curve, mean, std, low, high, n, right);
    for (int64_t i = 0; i < n; ++i) {
      to[2 * (at + i)] = left[i];
      to[2 * (at + i) + 1] = right[i];
    }
  }
}
