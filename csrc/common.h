// What all CPU kernels share: number formats, threads, instruction sets.
#pragma once

#include <stdint.h>
#include <string.h>

#include "tmcodec.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace tmc {

enum Isa { ISA_BASELINE = 0, ISA_AVX2 = 1, ISA_AVX512 = 2, ISA_COUNT = 3 };

struct Projection {
  int64_t dim, padded;  // length of a row of weight, and distance of two rows
  const float *weight;  // [dims, padded]
  const float *bias;    // or NULL
};

struct Quantized {  // each may be NULL
  float *latents, *codes;
  int32_t *indices;
};

struct ContextWork {  // scratch of the context coder, one chunk's; see context_kernels.h
  const int16_t **rows;
  const int16_t *second, *heads;  // of the model, in pairs [in / 2, out, 2]
  int16_t *h1, *h2, *near;
  int32_t *sums, *g, *v, *v_rows, *states, *counts, *steps;
  int64_t *logits, *weights;
};

struct BitWork {  // scratch of masks in context; see bit_kernels.h
  int32_t *chances;  // [2, 2 + 16 + 65536, 2]
  uint8_t *rows;     // [4, cols + 6]
};

// What kernels.cpp does, compiled once for each instruction set. Functions over begin..end work on
// part of the vectors; the raster functions work on one row.
struct Kernels {
  void (*quantize)(const tmc_grid &, const void *latents, int32_t dtype, int64_t inner, float *codes,
                   int32_t *indices, int64_t begin, int64_t end);
  void (*dequantize)(const tmc_grid &, const int32_t *indices, int64_t inner, float *codes, int64_t begin,
                     int64_t end);
  void (*backward)(const tmc_grid &, const void *latents, int32_t dtype, const float *grad_codes, int64_t inner,
                   void *grad_latents, int64_t begin, int64_t end);
  void (*project_quantize)(const tmc_grid &, const void *x, int32_t dtype, const Projection &, const Quantized &,
                           int64_t begin, int64_t end);
  void (*dequantize_project)(const tmc_grid &, const int32_t *indices, const Projection &, void *out, int32_t dtype,
                             int64_t begin, int64_t end);
  void (*normalize)(const void *raster, int32_t dtype, int64_t from, const uint8_t *mask, int64_t count, float mean,
                    float std, float fill, void *tiles, int32_t tile_dtype, int64_t at);
  void (*fill_row)(int64_t count, float fill, void *tiles, int32_t tile_dtype, int64_t at);
  void (*add_row)(const void *tiles, int32_t tile_dtype, int64_t from, float row_weight, const float *col_weights,
                  int64_t count, float *sums, float *weights);
  void (*write_row)(const float *sums, const float *weights, const uint8_t *mask, int64_t count, float mean,
                    float std, float fill, void *raster, int32_t dtype, int64_t at);
  void (*compand_pool)(const float *top, const float *bottom, int64_t count, const tmc_curve &, float mean, float std,
                       float *half);
  void (*interleave)(const float *planes, int64_t channels, int64_t stride, int64_t count, int64_t cell, int64_t step,
                     float *cells);
  void (*double_row)(const float *middle, const float *other, int64_t width, const tmc_curve &, float mean, float std,
                     float low, float high, float *to);
  int64_t (*context_code)(const tmc_context_model &, const ContextWork &, bool decoding, int16_t *planes, int64_t rows,
                          int64_t cols, uint8_t *data, int64_t size);
  int64_t (*code_bits)(bool decoding, uint8_t *bits, int64_t planes, int64_t rows, int64_t cols, uint8_t *data,
                       int64_t size, const BitWork &);
};

// Number of elements a * b * c, or -1 where a size is negative or the number absurd.
static inline int64_t volume(int64_t a, int64_t b, int64_t c) {
  const int64_t most = INT64_MAX / 1024;
  if (a < 0 || b < 0 || c < 0) return -1;
  if (a == 0 || b == 0 || c == 0) return 0;
  if (a > most / b || a * b > most / c) return -1;
  return a * b * c;
}

const Kernels &kernels();  // those of the instruction set in use; dispatch.cpp

// Thresholds may be subnormal (the tie at z = 0 is one), so comparisons must see subnormals as
// they are, even where the caller has switched flush-to-zero on (torch.set_flush_denormal).
class ExactSubnormals {
 public:
#if defined(__SSE2__)
  ExactSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~ExactSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__) && defined(__GNUC__)
  ExactSubnormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_ & ~(uint64_t{1} << 24)));
  }
  ~ExactSubnormals() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Call body(begin, end) for parts of 0..n, each of at least `grain`, in up to `threads` threads
// (0: OpenMP's default). One part runs in the caller, without OpenMP: a forked child, whose
// OpenMP threads are gone, stays usable with threads = 1.
template <typename Body>
void parallel_for(int64_t n, int64_t grain, int32_t threads, const Body &body) {
  if (n <= 0) return;
  int64_t parts = (n + grain - 1) / grain;
#ifdef _OPENMP
  const int64_t limit = threads > 0 ? threads : omp_get_max_threads();
#else
  const int64_t limit = 1;
  (void)threads;
#endif
  if (parts > limit) parts = limit;
  if (parts <= 1) {
    ExactSubnormals exact;
    body(int64_t{0}, n);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
#endif
  for (int64_t part = 0; part < parts; ++part) {
    ExactSubnormals exact;
    const int64_t step = n / parts, rest = n % parts;  // n * part could overflow
    const int64_t begin = part * step + (part < rest ? part : rest);
    body(begin, begin + step + (part < rest ? 1 : 0));
  }
}

}  // namespace tmc
