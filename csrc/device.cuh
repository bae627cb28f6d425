// What the CUDA kernels share: number formats, 16-byte accesses, launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#include "tmcodec.h"

namespace tmc {

static __device__ __forceinline__ float to_float(float v) { return v; }
static __device__ __forceinline__ float to_float(double v) { return __double2float_rn(v); }
static __device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
static __device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ float to_float(uint8_t v) { return static_cast<float>(v); }
static __device__ __forceinline__ float to_float(uint16_t v) { return static_cast<float>(v); }
static __device__ __forceinline__ float to_float(int16_t v) { return static_cast<float>(v); }

static __device__ __forceinline__ void store(float *to, float v) { *to = v; }
static __device__ __forceinline__ void store(double *to, float v) { *to = v; }
static __device__ __forceinline__ void store(__half *to, float v) { *to = __float2half_rn(v); }
static __device__ __forceinline__ void store(__nv_bfloat16 *to, float v) { *to = __float2bfloat16_rn(v); }

// As many values as 16 bytes hold, moved at once.
template <typename T>
struct alignas(16) Pack {
  enum { SIZE = 16 / sizeof(T) };
  T values[SIZE];
};

// Alignment of COUNT values moved together: 16 bytes at most, which is all that pointers are checked for.
template <typename T, int COUNT>
struct Wide {
  enum { BYTES = COUNT * sizeof(T) < 16 ? COUNT * sizeof(T) : 16 };
};

// Load N neighbouring floats, 16 bytes at once where N is a multiple of 4; `from` is aligned then.
template <int N>
static __device__ __forceinline__ void load_floats(const float *from, float *to) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const float4 part = __ldg(reinterpret_cast<const float4 *>(from) + i);
      to[4 * i] = part.x, to[4 * i + 1] = part.y, to[4 * i + 2] = part.z, to[4 * i + 3] = part.w;
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) to[k] = __ldg(from + k);
  }
}

// Store a struct in accesses of 16 bytes; an assignment of one that was filled value by value becomes as many
// stores as it has values. `to` is aligned to 16 bytes, or to the struct where that is smaller.
template <typename T, typename S>
static __device__ __forceinline__ void store_whole(T *to, const S &values) {
  static_assert(sizeof(S) < 16 || sizeof(S) % 16 == 0, "no whole accesses");
  if constexpr (sizeof(S) % 16 == 0) {
    uint4 bits[sizeof(S) / 16];
    memcpy(bits, &values, sizeof(S));
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(S) / 16); ++i) __stwb(reinterpret_cast<uint4 *>(to) + i, bits[i]);
  } else {
    *reinterpret_cast<S *>(to) = values;
  }
}

static inline bool aligned(const void *pointer) { return (reinterpret_cast<uintptr_t>(pointer) & 15u) == 0; }

enum { THREADS = 256 };

// Blocks for a grid-stride loop over `units` of work: enough to fill any device, not more.
static inline unsigned blocks_for(int64_t units, int64_t units_each) {
  int device = 0, processors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const int64_t most = 16 * static_cast<int64_t>(processors > 0 ? processors : 1);
  const int64_t wanted = (units + units_each - 1) / units_each;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

inline thread_local cudaError_t last_error = cudaSuccess;

static inline int32_t launch_status() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return TMC_OK;
  last_error = error;
  return TMC_ECUDA;
}

static inline bool valid_sizes(int64_t a, int64_t b) {
  return a >= 0 && b >= 0 && (b == 0 || a <= INT64_MAX / 1024 / b);
}

}  // namespace tmc
