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

// Kernels are compiled once for each instruction set, inside TMC_BEGIN_ISA .. TMC_END_ISA. They use
// only their own static functions: an inline function of the standard library, compiled for
// AVX-512 and kept by the linker as the one copy, would crash an older machine.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define TMC_X86_DISPATCH 1
#endif

#define TMC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TMC_BEGIN_ISA(features) \
  TMC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TMC_END_ISA TMC_PRAGMA(clang attribute pop)
#else
#define TMC_BEGIN_ISA(features) TMC_PRAGMA(GCC push_options) TMC_PRAGMA(GCC target(features))
#define TMC_END_ISA TMC_PRAGMA(GCC pop_options)
#endif
// Full-width registers: several compilers hold AVX-512 back to 256 bits by default.
#if defined(__clang__)
#define TMC_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#else
#define TMC_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512"
#endif
#define TMC_AVX2 "avx2,fma,f16c"

namespace tmc {

enum Isa { ISA_BASELINE = 0, ISA_AVX2 = 1, ISA_AVX512 = 2, ISA_COUNT = 3 };

Isa current_isa();  // fsq.cpp

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
