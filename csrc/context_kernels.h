// The context coder: one chunk of tokens to bytes and back, integers only. Part of kernels.cpp.
// docs/format.md says what it does, tmcodec/tokenfile/context/reference.py says it in NumPy.

static const int64_t kFull = int64_t(1) << 48, kLow = int64_t(1) << 40;
static const int32_t kTop = 1023, kVLimit = (1 << 19) - 1, kCounts = 64;
static const int64_t kLogitLimit = int64_t(1) << 30;

static inline int32_t activation(int32_t sum, int shift) {
  sum >>= shift;
  return sum < 0 ? 0 : sum > kTop ? kTop : sum;
}

// Vectors of 32 bytes: compilers make of them what the instruction set has.
typedef int16_t Sixteen __attribute__((vector_size(32)));
typedef int32_t Eight __attribute__((vector_size(32)));

template <typename Vector, typename Number>
static inline Vector load(const Number *from) {
  Vector vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

// sums[width] += the rows; width is a multiple of 16. Whoever made the model saw to it that int16 suffices.
static inline void add_rows(const int16_t *const *rows, int32_t count, int32_t width, int16_t *sums) {
  for (int32_t at = 0; at < width; at += 16) {
    Sixteen sum = load<Sixteen>(sums + at);
    for (int32_t r = 0; r < count; r++) sum += load<Sixteen>(rows[r] + at);
    memcpy(sums + at, &sum, sizeof sum);
  }
}

// Eight sums of two products: w [8, 2] times the two halves of `pair`.
static inline Eight pair_products(const int16_t *w, const int16_t *pair) {
  int32_t both;
  memcpy(&both, pair, sizeof both);
#if defined(__AVX2__)
  return (Eight)_mm256_madd_epi16(load<__m256i>(w), _mm256_set1_epi32(both));
#elif defined(__SSE2__)
  const __m128i twice = _mm_set1_epi32(both);
  const __m128i parts[2] = {_mm_madd_epi16(load<__m128i>(w), twice), _mm_madd_epi16(load<__m128i>(w + 8), twice)};
  return load<Eight>(parts);
#else
  Eight sums;
  for (int i = 0; i < 8; i++) sums[i] = int32_t(w[2 * i]) * pair[0] + int32_t(w[2 * i + 1]) * pair[1];
  return sums;
#endif
}

// sums[width] += x[count] times a matrix in pairs [count / 2, width, 2]; both are multiples of 16.
static inline void add_product(const int16_t *x, const int16_t *pairs, int32_t count, int32_t width, int32_t *sums) {
  for (int32_t at = 0; at < width; at += 16) {
    Eight first = load<Eight>(sums + at), second = load<Eight>(sums + at + 8);
    for (int32_t i = 0; i < count; i += 2) {
      const int16_t *row = pairs + int64_t(i) * width + 2 * at;
      first += pair_products(row, x + i);
      second += pair_products(row + 16, x + i);
    }
    memcpy(sums + at, &first, sizeof first);
    memcpy(sums + at + 8, &second, sizeof second);
  }
}

// The layers that all digits of a token share: fills work.h2.
static void context_hidden(const tmc_context_model &m, const ContextWork &work, const int16_t *cell, int64_t row_step,
                           int64_t plane_step) {
  int32_t count = 0, *sums = work.sums;
  for (int32_t s = 0; s < m.slots; s++) {
    const int32_t *slot = m.slot_table + 3 * s;
    const int16_t *near = cell + slot[0] * plane_step + slot[1] * row_step + slot[2] * m.digits;
    for (int32_t k = 0; k < m.digits; k++)
      work.rows[count++] = m.first + int64_t(m.first_rows[s * m.digits + k] + near[k]) * m.h1;
  }
  memcpy(work.h1, m.first_bias, m.h1 * sizeof(int16_t));
  add_rows(work.rows, count, m.h1, work.h1);
  for (int32_t i = 0; i < m.h1; i++) work.h1[i] = static_cast<int16_t>(activation(work.h1[i], 1));
  memcpy(sums, m.second_bias, m.h2 * sizeof(int32_t));
  add_product(work.h1, work.second, m.h1, m.h2, sums);
  for (int32_t j = 0; j < m.h2; j++) work.h2[j] = static_cast<int16_t>(activation(sums[j], 10));
}

// The head of digit k: fills work.g.
static void context_head(const tmc_context_model &m, const ContextWork &work, const int16_t *cell, int32_t k) {
  int32_t count = 0, *sums = work.g;
  for (int32_t i = 0; i < m.digits; i++) {
    const int32_t row = m.previous_rows[k * m.digits + i];
    if (row >= 0) work.rows[count++] = m.previous + int64_t(row + cell[i]) * m.hg;
  }
  memset(work.near, 0, m.hg * sizeof(int16_t));
  add_rows(work.rows, count, m.hg, work.near);
  for (int32_t j = 0; j < m.hg; j++) sums[j] = work.near[j] * 256 + m.head_bias[k * m.hg + j];
  add_product(work.h2, work.heads + int64_t(k) * m.h2 * m.hg, m.h2, m.hg, sums);
  for (int32_t j = 0; j < m.hg; j++) sums[j] = activation(sums[j], 10);
}

// Where the contexts of digit k stand: active[i] is the context, at[i] its sums, uses[i] its count.
struct ContextPlaces {
  int32_t active, context[6];
  int32_t *sums[6];
  int32_t *count[6];
};

static ContextPlaces context_places(const tmc_context_model &m, const ContextWork &work, const int16_t *cell,
                                    int64_t row_step, int64_t plane_step, int32_t n) {
  const int32_t k = m.order[n], level = m.levels[k];
  const int32_t left = cell[k - m.digits], up = cell[k - row_step];
  const int32_t values[6] = {0, left, up, n ? cell[m.order[n - 1]] : 0, left * (level + 1) + up, cell[k + plane_step]};
  ContextPlaces places;
  places.active = 0;
  for (int32_t c = 0; c < 6; c++) {
    const int32_t at = m.state_rows[6 * k + c];
    if (at < 0) continue;
    const int32_t i = places.active++;
    places.context[i] = c;
    places.sums[i] = work.states + at + int64_t(values[c]) * level;
    places.count[i] = work.counts + m.count_rows[6 * k + c] + values[c];
  }
  return places;
}

// Symbols are worked on in eights: v is [hg, eights of the level].
// Frequencies of digit k, each at least one; returns their sum.
static int64_t context_frequencies(const tmc_context_model &m, const ContextWork &work, const ContextPlaces &places,
                                   const int32_t *v, int32_t k) {
  const int32_t count = m.levels[k], padded = (count + 7) & ~7;
  int64_t *logits = work.logits, top = INT64_MIN, total = 0;
  for (int32_t at = 0; at < padded; at += 8) {
    Eight sum = {};
    for (int32_t j = 0; j < m.hg; j++) {
      sum += (load<Eight>(v + j * padded + at) >> 4) * work.g[j];
    }
    sum >>= 10;
    for (int32_t s = 0; s < 8; s++) logits[at + s] = sum[s];
  }
  for (int32_t s = 0; s < count; s++) {
    int64_t sum = m.hg ? m.last_bias[m.last_rows[k] + s] : 0;
    for (int32_t i = 0; i < places.active; i++) sum += places.sums[i][s];
    logits[s] += sum >> 6;
    top = logits[s] > top ? logits[s] : top;
  }
  for (int32_t s = 0; s < count; s++) {
    const int64_t below = top - logits[s], halvings = below >> 10;
    work.weights[s] = 1 + (m.exp2[below & 1023] >> (halvings < 31 ? halvings : 31));
    total += work.weights[s];
  }
  return total;
}

// Move the adaptive numbers towards the symbol that came.
static void context_learn(const tmc_context_model &m, const ContextWork &work, const ContextPlaces &places, int32_t *v,
                          int32_t k, int32_t symbol, int64_t total) {
  const int32_t count = m.levels[k], padded = (count + 7) & ~7;
  const int64_t share = (int64_t(1) << 32) / total;
  for (int32_t s = 0; s < padded; s++) work.steps[s] = 0;
  for (int32_t s = 0; s < count; s++)
    work.steps[s] = static_cast<int32_t>((s == symbol ? 65536 : 0) - ((work.weights[s] * share) >> 16));
  for (int32_t i = 0; i < places.active; i++) {
    const int64_t rate = m.rates[places.context[i] * kCounts + *places.count[i]];
    if (*places.count[i] < kCounts - 1) ++*places.count[i];
    for (int32_t s = 0; s < count; s++) {
      const int64_t moved = places.sums[i][s] + ((work.steps[s] * rate + 32768) >> 16);
      places.sums[i][s] =
          static_cast<int32_t>(moved > kLogitLimit ? kLogitLimit : moved < -kLogitLimit ? -kLogitLimit : moved);
    }
  }
  if (m.hg == 0 || m.last_rate == 0) return;
  const Eight most = Eight{} + kVLimit, least = Eight{} - kVLimit - 1, half = Eight{} + 32768;
  for (int32_t at = 0; at < padded; at += 8) {
    const Eight step = (load<Eight>(work.steps + at) * m.last_rate) >> 8;
    for (int32_t j = 0; j < m.hg; j++) {
      Eight weight = load<Eight>(v + j * padded + at);
      weight += (step * work.g[j] + half) >> 16;
      weight = weight > most ? most : weight;
      weight = weight < least ? least : weight;
      memcpy(v + j * padded + at, &weight, sizeof weight);
    }
  }
}

// A range coder's interval. Coding, bytes are written into data; decoding, they are read, zeros
// beyond the end.
struct Interval {
  int64_t low, span, value, place, size;
  uint8_t *data;

  int64_t byte(int64_t at) const { return at < size ? data[at] : 0; }

  void carry() {
    low -= kFull;
    int64_t at = place - 1;
    while (data[at] == 255) data[at--] = 0;
    data[at]++;
  }

  // Narrow to a symbol. Each makes the span at least 2^40 / 2^25, so at most four bytes move.
  template <bool decoding>
  void narrow(int64_t below, int64_t weight, int64_t part) {
    low += below * part;
    span = weight * part;
    if (decoding) {
      value -= below * part;
      low &= kFull - 1;
    } else if (low >= kFull) {
      carry();
    }
    for (; span < kLow; span <<= 8, low = (low & (kLow - 1)) << 8, place++) {
      if (decoding)
        value = value << 8 | byte(place + 6);
      else
        data[place] = static_cast<uint8_t>(low >> 40);
    }
  }

  // Write, or check, the fewest bytes that lie in the interval; the length, or -1 where they differ.
  int64_t finish(bool decoding) {
    int64_t mark = 0;
    int32_t tail = 0;
    for (; tail < 7; tail++) {
      const int64_t rest = kFull >> (8 * tail);
      mark = (low + rest - 1) & ~(rest - 1);
      if (mark < low + span) break;
    }
    if (decoding && size != place + tail) return -1;
    if (!decoding && mark >= kFull) low = mark, carry();
    for (int32_t i = 0; i < tail; i++) {
      const uint8_t one = static_cast<uint8_t>(mark >> (40 - 8 * i));
      if (!decoding) data[place + i] = one;
      if (data[place + i] != one) return -1;
    }
    return place + tail;
  }
};

template <bool decoding>
static int64_t context_chunk(const tmc_context_model &m, const ContextWork &work, int16_t *planes, int64_t rows,
                             int64_t cols, uint8_t *data, int64_t size) {
  Interval coder = {0, kFull - 1, 0, 0, size, data};
  for (int32_t i = 0; decoding && i < 6; i++) coder.value = coder.value << 8 | coder.byte(i);
  const int64_t row_step = (cols + 4) * m.digits, plane_step = (rows + 4) * row_step;
  for (int64_t at = 0; at < rows * cols; at++) {
    int16_t *cell = planes + (at / cols + 2) * row_step + (at % cols + 2) * m.digits;
    if (m.hg) context_hidden(m, work, cell, row_step, plane_step);
    for (int32_t n = 0; n < m.digits; n++) {
      const int32_t k = m.order[n];
      if (m.hg) context_head(m, work, cell, k);
      const ContextPlaces places = context_places(m, work, cell, row_step, plane_step, n);
      int32_t *v = work.v + work.v_rows[k];
      const int64_t total = context_frequencies(m, work, places, v, k), part = coder.span / total;
      int64_t below = 0, symbol = 0;
      if (decoding) {
        const int64_t target = coder.value / part;
        if (target >= total) return -1;  // no encoder goes there
        while (below + work.weights[symbol] <= target) below += work.weights[symbol++];
        cell[k] = static_cast<int16_t>(symbol);
      } else {
        symbol = cell[k];
        for (int64_t s = 0; s < symbol; s++) below += work.weights[s];
      }
      coder.narrow<decoding>(below, work.weights[symbol], part);
      context_learn(m, work, places, v, k, static_cast<int32_t>(symbol), total);
    }
  }
  return coder.finish(decoding);
}

static int64_t context_code(const tmc_context_model &m, const ContextWork &work, bool decoding, int16_t *planes,
                            int64_t rows, int64_t cols, uint8_t *data, int64_t size) {
  return decoding ? context_chunk<true>(m, work, planes, rows, cols, data, size)
                  : context_chunk<false>(m, work, planes, rows, cols, data, size);
}
