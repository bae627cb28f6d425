// FSQ on the CPU: argument checks, threads, choice of instruction set. The work is in fsq_kernels.h.
//
// By hand: c++ -std=c++17 -O3 -ffp-contract=off -fopenmp -fPIC -shared csrc/fsq.cpp csrc/rasters.cpp
// (-ffp-contract=off: a fused multiply-add on some machines would give them other bits.)

#include "common.h"

#include <stdlib.h>

#include <atomic>

namespace tmc {

namespace baseline {
#include "fsq_kernels.h"
}

#ifdef TMC_X86_DISPATCH
TMC_BEGIN_ISA(TMC_AVX2)
namespace avx2 {
#include "fsq_kernels.h"
}
TMC_END_ISA

TMC_BEGIN_ISA(TMC_AVX512)
namespace avx512 {
#include "fsq_kernels.h"
}
TMC_END_ISA
#define TMC_CALL(function, ...)                                      \
  switch (current_isa()) {                                           \
    case ISA_AVX512: return avx512::function(__VA_ARGS__);           \
    case ISA_AVX2: return avx2::function(__VA_ARGS__);               \
    default: return baseline::function(__VA_ARGS__);                 \
  }
#else
#define TMC_CALL(function, ...) return baseline::function(__VA_ARGS__)
#endif

static bool has_isa(int isa) {
#ifdef TMC_X86_DISPATCH
  if (isa == ISA_AVX512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_isa(ISA_AVX2);
  if (isa == ISA_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == ISA_BASELINE;
}

static const char *const isa_names[ISA_COUNT] = {"baseline", "avx2", "avx512"};
static std::atomic<int> chosen_isa{-1};

Isa current_isa() {
  int isa = chosen_isa.load(std::memory_order_relaxed);
  if (isa < 0) {
    for (isa = ISA_COUNT - 1; !has_isa(isa);) --isa;
    chosen_isa.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

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

int32_t tmc_abi_version(void) { return TMC_ABI_VERSION; }

const char *tmc_isa(void) { return isa_names[current_isa()]; }

int32_t tmc_set_isa(const char *name) {
  for (int isa = 0; isa < ISA_COUNT; ++isa)
    if (strcmp(name, isa_names[isa]) == 0 && has_isa(isa)) {
      chosen_isa.store(isa, std::memory_order_relaxed);
      return TMC_OK;
    }
  return TMC_EARGUMENT;
}

int32_t tmc_has_openmp(void) {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}

int32_t tmc_fsq_quantize(const tmc_grid *grid, const void *latents, int32_t dtype, int64_t outer, int64_t inner,
                         float *codes, int32_t *indices, int32_t threads) {
  if (!valid(grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  if (!is_float(dtype)) return TMC_EDTYPE;
  parallel_for(outer * inner, grain_of(grid->dims), threads, [=](int64_t begin, int64_t end) {
    TMC_CALL(quantize, *grid, latents, dtype, inner, codes, indices, begin, end);
  });
  return TMC_OK;
}

int32_t tmc_fsq_dequantize(const tmc_grid *grid, const int32_t *indices, int64_t outer, int64_t inner,
                           float *codes, int32_t threads) {
  if (!valid(grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  parallel_for(outer * inner, grain_of(grid->dims), threads, [=](int64_t begin, int64_t end) {
    TMC_CALL(dequantize, *grid, indices, inner, codes, begin, end);
  });
  return TMC_OK;
}

int32_t tmc_fsq_backward(const tmc_grid *grid, const void *latents, int32_t dtype, const float *grad_codes,
                         int64_t outer, int64_t inner, void *grad_latents, int32_t threads) {
  if (!valid(grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  if (!is_float(dtype)) return TMC_EDTYPE;
  parallel_for(outer * inner, grain_of(grid->dims), threads, [=](int64_t begin, int64_t end) {
    TMC_CALL(backward, *grid, latents, dtype, grad_codes, inner, grad_latents, begin, end);
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
    TMC_CALL(project_quantize, *grid, x, dtype, {dim, padded, rows, bias}, {latents, codes, indices}, begin, end);
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
    TMC_CALL(dequantize_project, *grid, indices, {dim, dim, weight, bias}, out, dtype, begin, end);
  });
  return TMC_OK;
}

}  // extern "C"
