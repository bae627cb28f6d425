// FSQ on the CPU: checks of arguments, and threads. The work is in fsq_kernels.h.

#include "common.h"

#include <stdlib.h>

namespace tmc {

// A part smaller than this many elements costs less than waking a thread.
static const int64_t kGrain = 32768;

static int64_t grain_of(int64_t elements_each) {
  const int64_t grain = kGrain / (elements_each > 0 ? elements_each : 1);
  return grain > 16 ? grain : 16;
}

static bool is_float(int32_t dtype) { return dtype >= TMC_F32 && dtype <= TMC_BF16; }

static bool valid(const tmc_grid *grid) {
  if (grid == nullptr || grid->dims < 1 || grid->dims > TMC_MAX_DIMS || grid->levels == nullptr) return false;
  int64_t size = 1;
  for (int32_t c = 0; c < grid->dims; ++c) {
    if (grid->levels[c] < 2 || grid->levels[c] > TMC_MAX_LEVEL) return false;
    size *= grid->levels[c];
    if (size > INT32_MAX) return false;
  }
  return true;
}

static bool valid_sizes(int64_t a, int64_t b) {
  return a >= 0 && b >= 0 && (b == 0 || a <= INT64_MAX / 1024 / b);
}

// Weight rows padded with zeros to whole lanes.
static float *pad_weight(const float *weight, int64_t dims, int64_t dim, int64_t padded) {
  float *copy = static_cast<float *>(calloc(static_cast<size_t>(dims * padded) + 1, sizeof(float)));
  if (copy != nullptr)
    for (int64_t c = 0; c < dims; ++c)
      if (dim > 0) memcpy(copy + c * padded, weight + c * dim, static_cast<size_t>(dim) * sizeof(float));
  return copy;
}

}  // namespace tmc

using namespace tmc;

extern "C" {

int32_t tmc_fsq_quantize(const tmc_grid *grid, const void *latents, int32_t dtype, int64_t outer, int64_t inner,
                         float *codes, int32_t *indices, int32_t threads) {
  if (!valid(grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  if (!is_float(dtype)) return TMC_EDTYPE;
  parallel_for(outer * inner, grain_of(grid->dims), threads, [=](int64_t begin, int64_t end) {
    kernels().quantize(*grid, latents, dtype, inner, codes, indices, begin, end);
  });
  return TMC_OK;
}

int32_t tmc_fsq_dequantize(const tmc_grid *grid, const int32_t *indices, int64_t outer, int64_t inner,
                           float *codes, int32_t threads) {
  if (!valid(grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  parallel_for(outer * inner, grain_of(grid->dims), threads, [=](int64_t begin, int64_t end) {
    kernels().dequantize(*grid, indices, inner, codes, begin, end);
  });
  return TMC_OK;
}

int32_t tmc_fsq_backward(const tmc_grid *grid, const void *latents, int32_t dtype, const float *grad_codes,
                         int64_t outer, int64_t inner, void *grad_latents, int32_t threads) {
  if (!valid(grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  if (!is_float(dtype)) return TMC_EDTYPE;
  parallel_for(outer * inner, grain_of(grid->dims), threads, [=](int64_t begin, int64_t end) {
    kernels().backward(*grid, latents, dtype, grad_codes, inner, grad_latents, begin, end);
  });
  return TMC_OK;
}

int32_t tmc_fsq_project_quantize(const tmc_grid *grid, const void *x, int32_t dtype, int64_t n, int64_t dim,
                                 const float *weight, const float *bias, float *latents, float *codes,
                                 int32_t *indices, int32_t threads) {
  if (!valid(grid) || !valid_sizes(n, dim)) return TMC_EARGUMENT;
  if (!is_float(dtype)) return TMC_EDTYPE;
  const int64_t padded = (dim + 15) / 16 * 16;
  float *rows = pad_weight(weight, grid->dims, dim, padded);
  if (rows == nullptr) return TMC_EMEMORY;
  parallel_for(n, grain_of(dim), threads, [=](int64_t begin, int64_t end) {
    kernels().project_quantize(*grid, x, dtype, Projection{dim, padded, rows, bias}, Quantized{latents, codes, indices}, begin, end);
  });
  free(rows);
  return TMC_OK;
}

int32_t tmc_fsq_dequantize_project(const tmc_grid *grid, const int32_t *indices, int64_t n, int64_t dim,
                                   const float *weight, const float *bias, void *out, int32_t dtype,
                                   int32_t threads) {
  if (!valid(grid) || !valid_sizes(n, dim)) return TMC_EARGUMENT;
  if (!is_float(dtype)) return TMC_EDTYPE;
  parallel_for(n, grain_of(dim), threads, [=](int64_t begin, int64_t end) {
    kernels().dequantize_project(*grid, indices, Projection{dim, dim, weight, bias}, out, dtype, begin, end);
  });
  return TMC_OK;
}

}  // extern "C"
