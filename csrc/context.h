/* C interface of the context coder; part of tmcodec.h. docs/format.md says what it computes. */
#ifndef TMCODEC_CONTEXT_H
#define TMCODEC_CONTEXT_H

#include <stdint.h>

#define TMC_EDAMAGED (-5) /* the bytes are none that coding gives */

/* A model of one tokenizer; arrays as in tmcodec/tokenfile/context/model.py, all host memory.
 * Without a network slots, h1, h2 and hg are 0,
 * and its arrays are not read; with one they are multiples of 16, and no sum of rows of
 * `first` with its bias, or of `previous`, leaves int16. */
typedef struct tmc_context_model {
  int32_t digits, slots, h1, h2, hg, last_rate;
  const int32_t *levels, *order;                             /* [digits] */
  const int32_t *slot_table;                                 /* [slots, 3]: source, row, column offset */
  const int32_t *first_rows;                                 /* [slots, digits] */
  const int16_t *first;                                      /* [rows, h1] */
  const int16_t *first_bias;                                 /* [h1] */
  const int16_t *second;                                     /* [h1, h2] */
  const int32_t *second_bias;                                /* [h2] */
  const int16_t *heads;                                      /* [digits, h2, hg] */
  const int32_t *head_bias;                                  /* [digits, hg] */
  const int32_t *previous_rows;                              /* [digits, digits], -1: not coded before */
  const int16_t *previous;                                   /* [rows, hg] */
  const int32_t *last_rows;                                  /* [digits + 1] */
  const int16_t *last;                                       /* [sum of levels, hg] */
  const int32_t *last_bias;                                  /* [sum of levels] */
  const int32_t *rates;                                      /* [6, 64] */
  const int32_t *state_rows, *count_rows;                    /* [digits, 6], -1: context off */
  const int32_t *exp2;                                       /* [1024] */
  int64_t state_size, count_size;
} tmc_context_model;

#ifdef __cplusplus
extern "C" {
#endif

/* Raised with every change of this file. */
#define TMC_CONTEXT_VERSION 2
TMC_API int32_t tmc_context_version(void);

/* Code a chunk of rows x cols tokens (each 1 to 256), or decode it. planes [2, rows + 4, cols + 4,
 * digits] holds digits of the chunk and of its reference, each with a border of two tokens; decoding fills
 * the chunk's. data has `size` bytes: decoding, those to read; coding, room for at least
 * rows * cols * digits * 4 + 6. *length is what coding wrote. */
TMC_API int32_t tmc_context_code(const tmc_context_model *model, int32_t decoding, int16_t *planes, int64_t rows,
                                 int64_t cols, uint8_t *data, int64_t size, int64_t *length);

/* Folded errors of prediction [rows, cols] to the numbers themselves, in place; weights [6], in 256ths, are
 * those of W, N, NW, NE, WW, NN, and `size` is the codebook's. */
TMC_API int32_t tmc_context_undo_errors(int32_t *numbers, int64_t rows, int64_t cols, const int32_t *weights,
                                        int32_t size);

/* Code planes of bits [planes, rows, cols], bytes of 0 and 1, or decode them: masks. data has `size` bytes:
 * decoding, those to read; coding, room for at least planes * rows * (cols + 1) * 3 + 6. *length is what coding
 * wrote. */
TMC_API int32_t tmc_bits_code(int32_t decoding, uint8_t *bits, int64_t planes, int64_t rows, int64_t cols, uint8_t *data,
                              int64_t size, int64_t *length);

#ifdef __cplusplus
}
#endif
#endif
