// What the library says of itself, and its choice of an instruction set.

#include "common.h"

#include <atomic>

namespace tmc {

// One object file each of kernels.cpp; build_native.py says which there are.
extern const Kernels kernels_baseline;
#ifdef TMC_HAVE_X86
extern const Kernels kernels_avx2, kernels_avx512;
static const Kernels *const all_kernels[ISA_COUNT] = {&kernels_baseline, &kernels_avx2, &kernels_avx512};
#else
static const Kernels *const all_kernels[ISA_COUNT] = {&kernels_baseline, nullptr, nullptr};
#endif

static const char *const isa_names[ISA_COUNT] = {"baseline", "avx2", "avx512"};

static bool has_isa(int isa) {
#ifdef TMC_HAVE_X86
  if (isa == ISA_AVX512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_isa(ISA_AVX2);
  if (isa == ISA_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == ISA_BASELINE;
}

static std::atomic<int> chosen_isa{-1};

static int current_isa() {
  int isa = chosen_isa.load(std::memory_order_relaxed);
  if (isa < 0) {
    for (isa = ISA_COUNT - 1; !has_isa(isa);) --isa;
    chosen_isa.store(isa, std::memory_order_relaxed);
  }
  return isa;
}

const Kernels &kernels() { return *all_kernels[current_isa()]; }

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

}  // extern "C"
