// Masks in context: planes of bits to bytes and back, integers only. Part of kernels.cpp.
// docs/format.md says what it does, tmcodec/tokenfile/context/bits.py says it in Python.

static const int32_t kCounted = 127;

// How probable a one is after a pattern (Q24), and how often the pattern came.
struct Chance {
  int32_t chance, uses;

  int64_t one() const {
    const int32_t frequency = chance >> 8;
    return frequency < 1 ? 1 : frequency > 65535 ? 65535 : frequency;
  }

  void learn(int32_t bit, const int32_t *rates) {
    chance += static_cast<int32_t>((int64_t((bit << 24) - chance) * rates[uses]) >> 16);
    uses += uses < kCounted;
  }
};

// Code or decode one bit; -1 where no encoder goes.
template <bool decoding>
static inline int32_t code_bit(Interval &coder, Chance &chance, int32_t bit, const int32_t *rates) {
  const int64_t one = chance.one(), zero = 65536 - one, part = coder.span >> 16;
  if (decoding) {
    const int64_t target = coder.value / part;
    if (target >= 65536) return -1;
    bit = target >= zero;
  }
  coder.narrow<decoding>(bit ? zero : 0, bit ? one : zero, part);
  chance.learn(bit, rates);
  return bit;
}

// The rows around the one to code, each with three columns more on either side: one and two above it; in the plane
// before, the same and the next one, NULL in the first plane.
struct Around {
  const uint8_t *above, *over, *beside, *below;
};

// Bits from..to beside column c of a row, the latest lowest.
struct Sight {
  const uint8_t *row;
  int64_t to;
  uint32_t mask, bits;

  Sight(const uint8_t *wide, int64_t from, int64_t last) : row(wide + 3), to(last), mask(0), bits(0) {
    if (!wide) return;
    mask = (1u << (last - from + 1)) - 1;
    for (int64_t c = from; c < last; c++) bits = bits << 1 | row[c];
  }
  uint32_t step(int64_t c) { return bits = (bits << 1 | row[c + to]) & mask; }
};

// A row that has to be coded; false where no encoder goes.
template <bool decoding>
static bool bit_row(Interval &coder, uint8_t *line, int64_t cols, const Around &around, Chance *few, Chance *many,
                    const int32_t *rates) {
  const bool first = !around.beside;
  uint32_t left = around.above[3] ? 15 : 0;
  Sight above(around.above, first ? -3 : -2, first ? 3 : 2), over(around.over, -2, 2);
  Sight beside(around.beside, -2, 2), below(around.below, -1, 1);
  for (int64_t c = 0; c < cols; c++) {
    uint32_t pattern, nearest = (left & 1) << 3;
    if (first) {
      const uint32_t up = above.step(c);
      pattern = left << 12 | up << 5 | over.step(c);
      nearest |= up >> 2 & 7;
    } else {
      const uint32_t up = above.step(c), same = beside.step(c);
      pattern = (left & 7) << 13 | up << 8 | same << 3 | below.step(c);
      nearest |= (up >> 2 & 1) << 2 | (same >> 1 & 3);
    }
    Chance &far = many[pattern], &near = few[nearest];
    if (far.uses == 0) far.chance = near.chance;
    const int32_t bit = code_bit<decoding>(coder, far, line[c], rates);
    if (bit < 0) return false;
    near.learn(bit, rates);
    line[c] = static_cast<uint8_t>(bit);
    left = (left << 1 | static_cast<uint32_t>(bit)) & 15;
  }
  return true;
}

// A row with its ends repeated.
static inline void widen(const uint8_t *line, int64_t cols, uint8_t *wide) {
  memset(wide, line[0], 3);
  memcpy(wide + 3, line, cols);
  memset(wide + 3 + cols, line[cols - 1], 3);
}

// Chances of one kind of plane: of rows, of the nearest four, of all sixteen.
static const int64_t kChances = 2 + 16 + 65536;

// A plane; false where no encoder goes. `before` is the one before it, or NULL.
template <bool decoding>
static bool bit_plane(Interval &coder, uint8_t *bits, const uint8_t *before, int64_t rows, int64_t cols,
                      Chance *chances, const int32_t *rates, const BitWork &work) {
  uint8_t *above = work.rows, *over = above + cols + 6, *beside = over + cols + 6, *below = beside + cols + 6;
  memset(above, 1, cols + 6);
  memset(over, 1, cols + 6);
  int32_t same = 1;
  for (int64_t r = 0; r < rows; r++) {
    uint8_t *line = bits + r * cols;
    if (before) {
      widen(before + r * cols, cols, beside);
      widen(before + (r + 1 < rows ? r + 1 : r) * cols, cols, below);
    }
    const uint8_t *usual = (before ? beside : above) + 3;
    same = code_bit<decoding>(coder, chances[same], !decoding && memcmp(line, usual, cols) == 0, rates);
    if (same < 0) return false;
    if (same) {
      memcpy(line, usual, cols);
    } else {
      const Around around = {above, over, before ? beside : nullptr, before ? below : nullptr};
      if (!bit_row<decoding>(coder, line, cols, around, chances + 2, chances + 18, rates)) return false;
    }
    widen(line, cols, over);
    uint8_t *swap = over;
    over = above;
    above = swap;
  }
  return true;
}

template <bool decoding>
static int64_t bit_planes(uint8_t *bits, int64_t planes, int64_t rows, int64_t cols, uint8_t *data, int64_t size,
                          const BitWork &work) {
  Interval coder = {0, kFull - 1, 0, 0, size, data};
  for (int32_t i = 0; decoding && i < 6; i++) coder.value = coder.value << 8 | coder.byte(i);
  int32_t rates[kCounted + 1];
  for (int32_t n = 0; n <= kCounted; n++) {
    const int32_t rate = 131072 / (2 * n + 5);
    rates[n] = rate < 655 ? 655 : rate;
  }
  Chance *chances = reinterpret_cast<Chance *>(work.chances);
  for (int64_t at = 0; at < 2 * kChances; at++) chances[at] = {1 << 23, 0};
  for (int64_t plane = 0; plane < planes; plane++) {
    uint8_t *at = bits + plane * rows * cols;
    const uint8_t *before = plane ? at - rows * cols : nullptr;
    if (!bit_plane<decoding>(coder, at, before, rows, cols, chances + (plane ? kChances : 0), rates, work)) return -1;
  }
  return coder.finish(decoding);
}

static int64_t code_bits(bool decoding, uint8_t *bits, int64_t planes, int64_t rows, int64_t cols, uint8_t *data,
                         int64_t size, const BitWork &work) {
  return decoding ? bit_planes<true>(bits, planes, rows, cols, data, size, work)
                  : bit_planes<false>(bits, planes, rows, cols, data, size, work);
}
