// C interface of the context coder; the work is done by context_kernels.h.

#include <stdint.h>

#include <new>

#include "common.h"

using tmc::ContextWork;

namespace {

template <typename T>
struct Scratch {
  explicit Scratch(int64_t count) : data(new (std::nothrow) T[count > 0 ? count : 1]()) {}
  ~Scratch() { delete[] data; }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  T *data;
};

int32_t largest(const tmc_context_model &m) {
  int32_t most = 2;
  for (int32_t k = 0; k < m.digits; k++) most = m.levels[k] > most ? m.levels[k] : most;
  return most;
}

bool valid(const tmc_context_model *m) {
  return m && m->digits > 0 && m->digits <= TMC_MAX_DIMS && m->h1 >= 0 && m->h2 >= 0 && m->hg >= 0 && m->slots >= 0 &&
         m->h1 % 16 == 0 && m->h2 % 16 == 0 && m->hg % 16 == 0 &&
         m->state_size >= 0 && m->count_size >= 0 && largest(*m) <= 256;
}

// A matrix [in, out] as [in / 2, out, 2]: what multiply-and-add-pairs instructions take.
void to_pairs(const int16_t *matrix, int32_t in, int32_t out, int16_t *pairs) {
  for (int32_t i = 0; i < in; i++)
    for (int32_t j = 0; j < out; j++) pairs[((i / 2) * int64_t(out) + j) * 2 + i % 2] = matrix[int64_t(i) * out + j];
}

}  // namespace

extern "C" TMC_API int32_t tmc_context_version(void) { return TMC_CONTEXT_VERSION; }

extern "C" TMC_API int32_t tmc_context_code(const tmc_context_model *model, int32_t decoding, int16_t *planes,
                                            int64_t rows, int64_t cols, uint8_t *data, int64_t size, int64_t *length) {
  if (!valid(model) || !planes || !data || !length || rows < 1 || cols < 1 || rows > 256 || cols > 256 || size < 0)
    return TMC_EARGUMENT;
  const tmc_context_model &m = *model;
  // A symbol moves at most four bytes, and six end the stream.
  if (!decoding && size < rows * cols * m.digits * 4 + 6) return TMC_EARGUMENT;
  const int32_t d = m.digits, symbols = (largest(m) + 7) & ~7;
  Scratch<int32_t> v_rows(d + 1);
  if (!v_rows.data) return TMC_EMEMORY;
  for (int32_t k = 0; k < d; k++) v_rows.data[k + 1] = v_rows.data[k] + ((m.levels[k] + 7) & ~7) * m.hg;
  Scratch<const int16_t *> near((m.slots + 1) * d);
  const int64_t second_size = int64_t(m.h1) * m.h2, head_size = int64_t(m.h2) * m.hg;
  Scratch<int16_t> second(second_size), heads(d * head_size), h1(m.h1), h2(m.h2), around(m.hg);
  Scratch<int32_t> sums(m.h2), g(m.hg), v(v_rows.data[d]), states(m.state_size), counts(m.count_size),
      steps(symbols);
  Scratch<int64_t> logits(symbols), weights(symbols);
  if (!near.data || !second.data || !heads.data || !around.data || !sums.data || !h1.data || !h2.data || !g.data || !v.data || !states.data || !counts.data || !steps.data ||
      !logits.data || !weights.data)
    return TMC_EMEMORY;
  to_pairs(m.second, m.h1, m.h2, second.data);
  for (int32_t k = 0; k < d; k++) to_pairs(m.heads + k * head_size, m.h2, m.hg, heads.data + k * head_size);
  for (int32_t k = 0; k < d; k++) {  // symbol by symbol in the model, unit by unit here
    const int32_t padded = (m.levels[k] + 7) & ~7;
    for (int32_t s = 0; s < m.levels[k]; s++)
      for (int32_t j = 0; j < m.hg; j++)
        v.data[v_rows.data[k] + j * padded + s] = m.last[int64_t(m.last_rows[k] + s) * m.hg + j] * 16;
  }
  const ContextWork work = {near.data, second.data, heads.data,  h1.data,     h2.data,    around.data, sums.data,
                            g.data,    v.data,      v_rows.data, states.data, counts.data, steps.data,
                            logits.data, weights.data};
  *length = tmc::kernels().context_code(m, work, decoding != 0, planes, rows, cols, data, size);
  return *length < 0 ? TMC_EDAMAGED : TMC_OK;
}

extern "C" TMC_API int32_t tmc_context_undo_errors(int32_t *numbers, int64_t rows, int64_t cols, const int32_t *weights,
                                                   int32_t size) {
  if (!numbers || !weights || rows < 1 || cols < 1 || size < 2) return TMC_EARGUMENT;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) {
      int32_t *here = numbers + r * cols + c;
      const int64_t n = r ? here[-cols] : c ? here[-1] : 0;
      const int64_t w = c ? here[-1] : n;
      const int64_t nw = !r ? w : c ? here[-cols - 1] : n;
      const int64_t ne = r && c + 1 < cols ? here[-cols + 1] : n;
      const int64_t ww = c > 1 ? here[-2] : w;
      const int64_t nn = r > 1 ? here[-2 * cols] : n;
      const int64_t sum = weights[0] * w + weights[1] * n + weights[2] * nw + weights[3] * ne + weights[4] * ww +
                          weights[5] * nn;
      const int64_t level = (sum + 128) >> 8, top = size - 1;
      const int64_t guess = level < 0 ? 0 : level > top ? top : level;
      const int64_t both = guess < top - guess ? guess : top - guess, folded = *here;
      if (folded < 0 || folded > top) return TMC_EARGUMENT;
      if (folded > 2 * both)
        *here = static_cast<int32_t>(guess == both ? guess + folded - both : guess - (folded - both));
      else
        *here = static_cast<int32_t>(folded & 1 ? guess + (folded + 1) / 2 : guess - folded / 2);
    }
  return TMC_OK;
}

extern "C" TMC_API int32_t tmc_bits_code(int32_t decoding, uint8_t *bits, int64_t planes, int64_t rows, int64_t cols,
                                         uint8_t *data, int64_t size, int64_t *length) {
  const int64_t most = int64_t(1) << 30;
  if (!bits || !data || !length || planes < 1 || rows < 1 || cols < 1 || size < 0 || planes > most ||
      rows > most / planes || cols > most / (planes * rows))
    return TMC_EARGUMENT;
  // A bit moves at most three bytes, and six end the stream; each row has one bit more.
  if (!decoding && size < planes * rows * (cols + 1) * 3 + 6) return TMC_EARGUMENT;
  Scratch<int32_t> chances(4 * (2 + 16 + 65536));
  Scratch<uint8_t> lines(4 * (cols + 6));
  if (!chances.data || !lines.data) return TMC_EMEMORY;
  const tmc::BitWork work = {chances.data, lines.data};
  *length = tmc::kernels().code_bits(decoding != 0, bits, planes, rows, cols, data, size, work);
  return *length < 0 ? TMC_EDAMAGED : TMC_OK;
}
