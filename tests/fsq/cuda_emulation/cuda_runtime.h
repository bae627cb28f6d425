// What the kernels of csrc/*.cu need of CUDA, on the host: so that their logic runs where no GPU is at hand.
//
// A launch runs its blocks one after the other. The threads of a block are fibers, which run in an order that
// the test chooses and change over only at barriers and shuffles: where the result depends on the order,
// a barrier is missing. A barrier that some threads of a block (or warp) never reach is an error.
// Not covered: memory spaces, caches, occupancy, and how nvcc fuses and schedules.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)
#define __grid_constant__

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct Dimension {
  unsigned x;
};
typedef void *cudaStream_t;
typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorInvalidDeviceFunction = 98, cudaErrorLaunchFailure = 719 };
enum { cudaDevAttrMultiProcessorCount = 16 };
struct cudaFuncAttributes {};

static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __double2float_rn(double v) { return static_cast<float>(v); }
template <typename T>
static inline T __ldg(const T *at) {
  return *at;
}

static inline void __stwb(uint4 *to, uint4 value) { *to = value; }

namespace emulation {

enum Wait { RUNNING, BLOCK, WARP, DONE };

struct Fiber {
  ucontext_t context;
  Wait wait;
};

inline Dimension thread, block, grid;
inline float exchanged[1024];
inline int order = 0, processors = 1, error = 0;  // order: of the threads, see `next`
inline bool foreign = false;  // no kernel was compiled for this device
inline std::vector<Fiber> fibers;
inline std::vector<char> stacks;
inline ucontext_t scheduler;
inline const std::function<void()> *body;

enum { STACK = 64 << 10 };

inline void enter() {
  (*body)();
  fibers[thread.x].wait = DONE;
  swapcontext(&fibers[thread.x].context, &scheduler);
}

inline void pause(Wait wait) {
  const unsigned me = thread.x;
  fibers[me].wait = wait;
  swapcontext(&fibers[me].context, &scheduler);
}

// The n-th thread to run: in order, backwards, or mixed.
inline unsigned next(unsigned n, unsigned threads) {
  if (order == 0) return n;
  if (order == 1) return threads - 1 - n;
  return (n * 97 + 31 + block.x) % threads;  // 97 is prime to every power of two
}

// Let those go on who have all arrived where they wait; false where nobody can.
inline bool release(unsigned threads) {
  bool all = true, any = false;
  for (const Fiber &f : fibers) all = all && (f.wait == BLOCK || f.wait == DONE);
  for (unsigned warp = 0; warp < threads; warp += 32) {
    bool together = true;
    for (unsigned t = warp; t < warp + 32; ++t) together = together && fibers[t].wait == WARP;
    for (unsigned t = warp; t < warp + 32; ++t)
      if ((together && fibers[t].wait == WARP) || (all && fibers[t].wait == BLOCK)) {
        fibers[t].wait = RUNNING;
        any = true;
      }
  }
  return any;
}

inline void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) {
    Fiber &f = fibers[t];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks.data() + static_cast<size_t>(t) * STACK;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    f.wait = RUNNING;
    makecontext(&f.context, enter, 0);
  }
  do {
    for (unsigned n = 0; n < threads; ++n) {
      thread.x = next(n, threads);
      if (fibers[thread.x].wait == RUNNING) swapcontext(&scheduler, &fibers[thread.x].context);
    }
  } while (release(threads));
  for (const Fiber &f : fibers)
    if (f.wait != DONE) error = cudaErrorLaunchFailure;
}

inline void launch(unsigned blocks, unsigned threads, const std::function<void()> &kernel) {
  if (foreign) {
    error = cudaErrorInvalidDeviceFunction;
    return;
  }
  fibers.resize(threads);
  stacks.resize(static_cast<size_t>(threads) * STACK);
  body = &kernel;
  grid.x = blocks;
  if (blocks == 0 || blocks > 2147483647u || threads % 32 != 0 || threads > 1024) error = cudaErrorLaunchFailure;
  for (block.x = 0; block.x < blocks && !error; ++block.x) run_block(threads);
}

}  // namespace emulation

#define threadIdx (emulation::thread)
#define blockIdx (emulation::block)
#define gridDim (emulation::grid)

static inline void __syncthreads() { emulation::pause(emulation::BLOCK); }
static inline void __syncwarp() { emulation::pause(emulation::WARP); }

static inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
  if (mask != 0xffffffffu) emulation::error = cudaErrorLaunchFailure;
  const unsigned me = emulation::thread.x;
  emulation::exchanged[me] = value;
  __syncwarp();
  const float other = emulation::exchanged[me ^ static_cast<unsigned>(lanes)];
  __syncwarp();
  return other;
}

static inline cudaError_t cudaGetDevice(int *device) { return *device = 0; }
static inline cudaError_t cudaDeviceGetAttribute(int *value, int, int) {
  *value = emulation::processors;
  return cudaSuccess;
}
static inline cudaError_t cudaGetLastError() {
  const cudaError_t last = emulation::error;
  emulation::error = cudaSuccess;
  return last;
}
template <typename Kernel>
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, Kernel *) {
  return emulation::error = emulation::foreign ? cudaErrorInvalidDeviceFunction : cudaSuccess;
}
static inline const char *cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return error == cudaErrorInvalidDeviceFunction ? "invalid device function" : "unspecified launch failure";
}

// For the tests: the order of the threads, and the processors, which bound the number of blocks.
extern "C" __attribute__((visibility("default"), weak)) void emulate(int32_t order, int32_t processors) {
  emulation::order = order;
  emulation::processors = processors;
}
extern "C" __attribute__((visibility("default"), weak)) void emulate_foreign_device(int32_t foreign) {
  emulation::foreign = foreign != 0;
}
