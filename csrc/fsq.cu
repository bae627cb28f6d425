// FSQ on CUDA, sm_70 on. Digits come from the same comparisons as on the CPU, so they are the same;
// dequantize and dequantize_project give the same bits too, project_quantize sums in another order.
//
// By hand: nvcc -std=c++17 -O3 -arch=native -Xcompiler -fPIC -shared csrc/fsq.cu csrc/rasters.cu -o libtmcodec_cuda.so

#include "device.cuh"

namespace tmc {

// The level list as a kernel argument: it sits in the constant bank, where a read that is the same
// for all threads of a warp costs no more than a register.
struct DeviceGrid {
  int32_t dims;
  float grad_rate;
  int32_t levels[TMC_MAX_DIMS];
  float code_shift[TMC_MAX_DIMS], code_span[TMC_MAX_DIMS], grad_shift[TMC_MAX_DIMS], grad_gain[TMC_MAX_DIMS];
  float thresholds[TMC_CUDA_MAX_THRESHOLDS];
};

static_assert(sizeof(DeviceGrid) < 3800, "kernel arguments are limited to 4 KiB");

static bool make_grid(const tmc_grid *from, DeviceGrid *to) {
  if (from == nullptr || from->dims < 1 || from->dims > TMC_MAX_DIMS) return false;
  int64_t size = 1, total = 0;
  to->dims = from->dims;
  to->grad_rate = from->grad_rate;
  for (int32_t c = 0; c < from->dims; ++c) {
    if (from->levels[c] < 2 || from->levels[c] > TMC_MAX_LEVEL) return false;
    size *= from->levels[c];
    total += from->levels[c] - 1;
    if (size > INT32_MAX || total > TMC_CUDA_MAX_THRESHOLDS) return false;
    to->levels[c] = from->levels[c];
    to->code_shift[c] = from->code_shift[c];
    to->code_span[c] = from->code_span[c];
    to->grad_shift[c] = from->grad_shift[c];
    to->grad_gain[c] = from->grad_gain[c];
  }
  for (int64_t k = 0; k < total; ++k) to->thresholds[k] = from->thresholds[k];
  return true;
}

static __device__ __forceinline__ int32_t find_digit(float value, const float *thresholds, int32_t total) {
  int32_t digit = 0;
#pragma unroll 4
  for (int32_t k = 0; k < total; ++k) digit += value > thresholds[k] ? 1 : 0;
  return digit;
}

static __device__ __forceinline__ float code_of(const DeviceGrid &grid, int32_t c, int32_t digit) {
  return __fdiv_rn(static_cast<float>(digit) - grid.code_shift[c], grid.code_span[c]);
}

// Digit of `rest` and the floor of what is left, for negative indices too, the lowest included.
static __device__ __forceinline__ int32_t next_digit(int32_t *rest, int32_t level) {
  const int32_t digit = *rest % level, below = digit < 0 ? 1 : 0;
  *rest = *rest / level - below;
  return digit + below * level;
}

// ---------------------------------------------------------------- quantize, channels last
//
// A block moves a tile of whole vectors through shared memory, so that all global accesses are
// 16 bytes wide and coalesced whatever the number of channels.

enum { TILE_FLOATS = 5120 };

static int64_t tile_vectors(int32_t dims) { return TILE_FLOATS / dims / 16 * 16; }

template <typename T, bool WIDE>
static __device__ void load_tile(const T *from, int64_t count, float *tile) {
  int64_t done = 0;
  if (WIDE) {
    enum { N = Pack<T>::SIZE };
    done = count / N * N;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < done; i += THREADS * N) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T> *>(from + i);
#pragma unroll
      for (int j = 0; j < N; ++j) tile[i + j] = to_float(pack.values[j]);
    }
  }
  for (int64_t i = done + threadIdx.x; i < count; i += THREADS) tile[i] = to_float(from[i]);
}

template <bool WIDE>
static __device__ void store_tile(const float *tile, int64_t count, float *to) {
  int64_t done = 0;
  if (WIDE) {
    done = count / 4 * 4;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * 4; i < done; i += THREADS * 4)
      *reinterpret_cast<float4 *>(to + i) = *reinterpret_cast<const float4 *>(tile + i);
  }
  for (int64_t i = done + threadIdx.x; i < count; i += THREADS) to[i] = tile[i];
}

template <typename T, bool WIDE>
static __global__ void __launch_bounds__(THREADS)
    quantize_vectors(const __grid_constant__ DeviceGrid grid, const T *latents, int64_t n, int64_t tile_size,
                     float *codes, int32_t *indices) {
  __shared__ alignas(16) float tile[TILE_FLOATS];
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * tile_size; at < n; at += gridDim.x * tile_size) {
    const int64_t count = n - at < tile_size ? n - at : tile_size;
    load_tile<T, WIDE>(latents + at * grid.dims, count * grid.dims, tile);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
      float *vector = tile + i * grid.dims;
      int32_t index = 0, basis = 1, first = 0;
      for (int32_t c = 0; c < grid.dims; ++c) {
        const int32_t digit = find_digit(vector[c], grid.thresholds + first, grid.levels[c] - 1);
        index += digit * basis;
        first += grid.levels[c] - 1;
        basis = static_cast<int32_t>(static_cast<uint32_t>(basis) * static_cast<uint32_t>(grid.levels[c]));
        if (codes != nullptr) vector[c] = code_of(grid, c, digit);
      }
      if (indices != nullptr) indices[at + i] = index;
    }
    __syncthreads();
    if (codes != nullptr) {
      store_tile<WIDE>(tile, count * grid.dims, codes + at * grid.dims);
      __syncthreads();
    }
  }
}

// ---------------------------------------------------------------- quantize, channels first

template <typename T, int WIDTH>
static __global__ void __launch_bounds__(THREADS)
    quantize_planes(const __grid_constant__ DeviceGrid grid, const T *latents, int64_t outer, int64_t inner,
                    float *codes, int32_t *indices) {
  struct alignas(Wide<T, WIDTH>::BYTES) Values { T v[WIDTH]; };
  struct alignas(WIDTH * 4) Floats { float v[WIDTH]; };
  struct alignas(WIDTH * 4) Ints { int32_t v[WIDTH]; };
  const int64_t columns = inner / WIDTH, units = outer * columns;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; u < units;
       u += static_cast<int64_t>(gridDim.x) * THREADS) {
    const int64_t o = u / columns, i = (u - o * columns) * WIDTH;
    Ints index = {};
    int32_t basis = 1, first = 0;
    for (int32_t c = 0; c < grid.dims; ++c) {
      const int64_t offset = (o * grid.dims + c) * inner + i;
      const Values z = *reinterpret_cast<const Values *>(latents + offset);
      Floats code;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        const int32_t digit = find_digit(to_float(z.v[j]), grid.thresholds + first, grid.levels[c] - 1);
        index.v[j] += digit * basis;
        code.v[j] = code_of(grid, c, digit);
      }
      if (codes != nullptr) *reinterpret_cast<Floats *>(codes + offset) = code;
      first += grid.levels[c] - 1;
      basis = static_cast<int32_t>(static_cast<uint32_t>(basis) * static_cast<uint32_t>(grid.levels[c]));
    }
    if (indices != nullptr) *reinterpret_cast<Ints *>(indices + o * inner + i) = index;
  }
}

template <typename T>
static void launch_quantize(const DeviceGrid &grid, const T *latents, int64_t outer, int64_t inner, float *codes,
                            int32_t *indices, cudaStream_t stream) {
  const bool wide = aligned(latents) && aligned(codes) && aligned(indices);
  if (inner == 1) {
    const int64_t tile = tile_vectors(grid.dims);
    const unsigned blocks = blocks_for(outer, tile);
    if (wide)
      quantize_vectors<T, true><<<blocks, THREADS, 0, stream>>>(grid, latents, outer, tile, codes, indices);
    else
      quantize_vectors<T, false><<<blocks, THREADS, 0, stream>>>(grid, latents, outer, tile, codes, indices);
  } else if (wide && inner % 4 == 0) {
    quantize_planes<T, 4><<<blocks_for(outer * inner / 4, THREADS), THREADS, 0, stream>>>(grid, latents, outer, inner,
                                                                                          codes, indices);
  } else {
    quantize_planes<T, 1><<<blocks_for(outer * inner, THREADS), THREADS, 0, stream>>>(grid, latents, outer, inner,
                                                                                      codes, indices);
  }
}

// ---------------------------------------------------------------- dequantize

template <bool WIDE>
static __global__ void __launch_bounds__(THREADS)
    dequantize_vectors(const __grid_constant__ DeviceGrid grid, const int32_t *indices, int64_t n, int64_t tile_size,
                       float *codes) {
  __shared__ alignas(16) float tile[TILE_FLOATS];
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * tile_size; at < n; at += gridDim.x * tile_size) {
    const int64_t count = n - at < tile_size ? n - at : tile_size;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
      int32_t rest = indices[at + i];
      for (int32_t c = 0; c < grid.dims; ++c)
        tile[i * grid.dims + c] = code_of(grid, c, next_digit(&rest, grid.levels[c]));
    }
    __syncthreads();
    store_tile<WIDE>(tile, count * grid.dims, codes + at * grid.dims);
    __syncthreads();
  }
}

static __global__ void __launch_bounds__(THREADS)
    dequantize_planes(const __grid_constant__ DeviceGrid grid, const int32_t *indices, int64_t outer, int64_t inner,
                      float *codes) {
  const int64_t n = outer * inner;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; p < n;
       p += static_cast<int64_t>(gridDim.x) * THREADS) {
    const int64_t o = p / inner, i = p - o * inner;
    int32_t rest = indices[p];
    for (int32_t c = 0; c < grid.dims; ++c)
      codes[(o * grid.dims + c) * inner + i] = code_of(grid, c, next_digit(&rest, grid.levels[c]));
  }
}

// ---------------------------------------------------------------- gradients

template <typename T, int WIDTH>
static __global__ void __launch_bounds__(THREADS)
    backward_elements(const __grid_constant__ DeviceGrid grid, const T *latents, const float *grad_codes,
                      int64_t total, int64_t inner, T *grad_latents) {
  struct alignas(Wide<T, WIDTH>::BYTES) Values { T v[WIDTH]; };
  struct alignas(WIDTH * 4) Floats { float v[WIDTH]; };
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; u < total / WIDTH;
       u += static_cast<int64_t>(gridDim.x) * THREADS) {
    const int64_t at = u * WIDTH;
    const Values z = *reinterpret_cast<const Values *>(latents + at);
    const Floats g = *reinterpret_cast<const Floats *>(grad_codes + at);
    Values out;
    const int64_t line = at / inner;  // divided once, then counted on: 64-bit divisions are slow
    int64_t left = inner - (at - line * inner);
    int32_t c = static_cast<int32_t>(line % grid.dims);
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) {
      const float e = expf(-grid.grad_rate * fabsf(to_float(z.v[j]) + grid.grad_shift[c]));
      store(&out.v[j], g.v[j] * (grid.grad_gain[c] * e / ((1.0f + e) * (1.0f + e))));
      if (--left == 0) {
        left = inner;
        c = c + 1 == grid.dims ? 0 : c + 1;
      }
    }
    *reinterpret_cast<Values *>(grad_latents + at) = out;
  }
}

template <typename T>
static void launch_backward(const DeviceGrid &grid, const T *latents, const float *grad_codes, int64_t total,
                            int64_t inner, T *grad_latents, cudaStream_t stream) {
  if (total % 4 == 0 && aligned(latents) && aligned(grad_codes) && aligned(grad_latents))
    backward_elements<T, sizeof(T) == 8 ? 2 : 4>
        <<<blocks_for(total / 4, THREADS), THREADS, 0, stream>>>(grid, latents, grad_codes, total, inner, grad_latents);
  else
    backward_elements<T, 1>
        <<<blocks_for(total, THREADS), THREADS, 0, stream>>>(grid, latents, grad_codes, total, inner, grad_latents);
}

// ---------------------------------------------------------------- fused projections
//
// A warp takes ROWS rows: each lane reads 16 bytes of each, and one read of the weight serves all.

enum { ROWS = 4, GROUP = 8, WARPS = THREADS / 32 };

template <typename T, int CHANNELS, bool WIDE>
static __device__ void dot_rows(const T *x, int64_t rows, int64_t dim, const float *weight, float *sums) {
  const int lane = threadIdx.x % 32;
  float total[ROWS][CHANNELS] = {};
  if (WIDE) {
    enum { N = Pack<T>::SIZE };
    for (int64_t j = static_cast<int64_t>(lane) * N; j < dim; j += 32 * N) {
      Pack<T> pack[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        if (r < rows) pack[r] = *reinterpret_cast<const Pack<T> *>(x + r * dim + j);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        float factors[N];
        load_floats<N>(weight + c * dim + j, factors);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
          for (int k = 0; k < N; ++k)
            if (r < rows) total[r][c] += to_float(pack[r].values[k]) * factors[k];
      }
    }
  }
  if (!WIDE) {
    for (int64_t j = lane; j < dim; j += 32)
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c)
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
          if (r < rows) total[r][c] += to_float(x[r * dim + j]) * __ldg(weight + c * dim + j);
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      float sum = total[r][c];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (lane == 0) sums[r * TMC_MAX_DIMS + c] = sum;
    }
}

template <typename T>
static __device__ void dot_wide(int32_t channels, const T *x, int64_t rows, int64_t dim, const float *weight,
                                float *sums) {
  switch (channels) {
    case 1: return dot_rows<T, 1, true>(x, rows, dim, weight, sums);
    case 2: return dot_rows<T, 2, true>(x, rows, dim, weight, sums);
    case 3: return dot_rows<T, 3, true>(x, rows, dim, weight, sums);
    case 4: return dot_rows<T, 4, true>(x, rows, dim, weight, sums);
    case 5: return dot_rows<T, 5, true>(x, rows, dim, weight, sums);
    case 6: return dot_rows<T, 6, true>(x, rows, dim, weight, sums);
    case 7: return dot_rows<T, 7, true>(x, rows, dim, weight, sums);
    default: return dot_rows<T, 8, true>(x, rows, dim, weight, sums);
  }
}

template <typename T, bool WIDE>
static __device__ void dot_group(int32_t channels, const T *x, int64_t rows, int64_t dim, const float *weight,
                                 float *sums) {
  if constexpr (!WIDE) {  // rare: rows that are no multiple of 16 bytes; one channel at a time keeps the library small
    for (int32_t c = 0; c < channels; ++c) dot_rows<T, 1, false>(x, rows, dim, weight + c * dim, sums + c);
  } else {
    dot_wide<T>(channels, x, rows, dim, weight, sums);
  }
}

template <typename T, bool WIDE>
static __global__ void __launch_bounds__(THREADS)
    project_rows(const __grid_constant__ DeviceGrid grid, const T *x, int64_t n, int64_t dim, const float *weight,
                 const float *bias, float *latents, float *codes, int32_t *indices) {
  __shared__ float sums[WARPS][ROWS * TMC_MAX_DIMS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * WARPS + warp) * ROWS; at < n;
       at += static_cast<int64_t>(gridDim.x) * WARPS * ROWS) {
    const int64_t rows = n - at < ROWS ? n - at : ROWS;
    for (int32_t c = 0; c < grid.dims; c += GROUP) {
      const int32_t channels = grid.dims - c < GROUP ? grid.dims - c : GROUP;
      dot_group<T, WIDE>(channels, x + at * dim, rows, dim, weight + c * dim, sums[warp] + c);
    }
    __syncwarp();
    if (lane < rows) {
      const float *z = sums[warp] + lane * TMC_MAX_DIMS;
      const int64_t row = at + lane;
      int32_t index = 0, basis = 1, first = 0;
      for (int32_t c = 0; c < grid.dims; ++c) {
        const float latent = bias != nullptr ? z[c] + bias[c] : z[c];
        const int32_t digit = find_digit(latent, grid.thresholds + first, grid.levels[c] - 1);
        index += digit * basis;
        if (latents != nullptr) latents[row * grid.dims + c] = latent;
        if (codes != nullptr) codes[row * grid.dims + c] = code_of(grid, c, digit);
        first += grid.levels[c] - 1;
        basis = static_cast<int32_t>(static_cast<uint32_t>(basis) * static_cast<uint32_t>(grid.levels[c]));
      }
      if (indices != nullptr) indices[row] = index;
    }
    __syncwarp();
  }
}

template <typename T>
static void launch_project(const DeviceGrid &grid, const T *x, int64_t n, int64_t dim, const float *weight,
                           const float *bias, float *latents, float *codes, int32_t *indices, cudaStream_t stream) {
  const unsigned blocks = blocks_for(n, WARPS * ROWS);
  if (aligned(x) && aligned(weight) && dim % Pack<T>::SIZE == 0)
    project_rows<T, true><<<blocks, THREADS, 0, stream>>>(grid, x, n, dim, weight, bias, latents, codes, indices);
  else
    project_rows<T, false><<<blocks, THREADS, 0, stream>>>(grid, x, n, dim, weight, bias, latents, codes, indices);
}

// A block takes EXPAND_ROWS indices: their codes go to shared memory, then threads write columns.
enum { EXPAND_ROWS = 64 };

template <typename T, int WIDTH>
static __global__ void __launch_bounds__(THREADS)
    expand_rows(const __grid_constant__ DeviceGrid grid, const int32_t *indices, int64_t n, int64_t dim,
                const float *weight, const float *bias, T *out) {
  __shared__ float codes[EXPAND_ROWS][TMC_MAX_DIMS];
  struct alignas(Wide<T, WIDTH>::BYTES) Values { T v[WIDTH]; };
  const int64_t columns = dim / WIDTH;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * EXPAND_ROWS; at < n;
       at += static_cast<int64_t>(gridDim.x) * EXPAND_ROWS) {
    const int64_t rows = n - at < EXPAND_ROWS ? n - at : EXPAND_ROWS;
    if (threadIdx.x < rows) {
      int32_t rest = indices[at + threadIdx.x];
      for (int32_t c = 0; c < grid.dims; ++c)
        codes[threadIdx.x][c] = code_of(grid, c, next_digit(&rest, grid.levels[c]));
    }
    __syncthreads();
    for (int64_t u = threadIdx.x; u < rows * columns; u += THREADS) {
      const int64_t r = u / columns, j = (u - r * columns) * WIDTH;
      float sums[WIDTH] = {}, factors[WIDTH];
      if (bias != nullptr) load_floats<WIDTH>(bias + j, sums);
#pragma unroll 2  // by four, the compilers' own choice, registers run out on sm_80
      for (int32_t c = 0; c < grid.dims; ++c) {
        load_floats<WIDTH>(weight + c * dim + j, factors);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k)  // not fused: the CPU's bits
          sums[k] = __fadd_rn(sums[k], __fmul_rn(codes[r][c], factors[k]));
      }
      Values values;
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) store(&values.v[k], sums[k]);
      store_whole(out + (at + r) * dim + j, values);
    }
    __syncthreads();
  }
}

template <typename T>
static void launch_expand(const DeviceGrid &grid, const int32_t *indices, int64_t n, int64_t dim, const float *weight,
                          const float *bias, T *out, cudaStream_t stream) {
  enum { WIDTH = Pack<T>::SIZE };
  const unsigned blocks = blocks_for(n, EXPAND_ROWS);
  if (aligned(out) && aligned(weight) && aligned(bias) && dim % WIDTH == 0)
    expand_rows<T, WIDTH><<<blocks, THREADS, 0, stream>>>(grid, indices, n, dim, weight, bias, out);
  else
    expand_rows<T, 1><<<blocks, THREADS, 0, stream>>>(grid, indices, n, dim, weight, bias, out);
}

}  // namespace tmc

using namespace tmc;

// Make `call` with T as the data type.
#define TMC_FOR_NARROW(dtype, call)                               \
  switch (dtype) {                                                \
    case TMC_F32: { using T = float; call; } break;               \
    case TMC_F16: { using T = __half; call; } break;              \
    case TMC_BF16: { using T = __nv_bfloat16; call; } break;      \
    default: return TMC_EDTYPE;                                   \
  }
#define TMC_FOR_DTYPE(dtype, call)                                \
  if (dtype == TMC_F64) {                                         \
    using T = double;                                             \
    call;                                                         \
  } else                                                          \
    TMC_FOR_NARROW(dtype, call)

extern "C" {

int32_t tmc_cuda_abi_version(void) { return TMC_ABI_VERSION; }

// Any kernel will do: all are compiled for the same architectures.
const char *tmc_cuda_why_not(void) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, dequantize_planes);
  cudaGetLastError();  // the next launch asks for its own error
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char *tmc_cuda_last_error(void) { return cudaGetErrorString(last_error); }

int32_t tmc_cuda_fsq_quantize(const tmc_grid *host, const void *latents, int32_t dtype, int64_t outer, int64_t inner,
                              float *codes, int32_t *indices, void *stream) {
  DeviceGrid grid;
  if (!make_grid(host, &grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  if (outer * inner == 0) return TMC_OK;
  TMC_FOR_DTYPE(dtype, launch_quantize(grid, static_cast<const T *>(latents), outer, inner, codes, indices,
                                       static_cast<cudaStream_t>(stream)))
  return launch_status();
}

int32_t tmc_cuda_fsq_dequantize(const tmc_grid *host, const int32_t *indices, int64_t outer, int64_t inner,
                                float *codes, void *stream) {
  DeviceGrid grid;
  if (!make_grid(host, &grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  if (outer * inner == 0) return TMC_OK;
  const auto queue = static_cast<cudaStream_t>(stream);
  if (inner == 1) {
    const int64_t tile = tile_vectors(grid.dims);
    const unsigned blocks = blocks_for(outer, tile);
    if (aligned(codes))
      dequantize_vectors<true><<<blocks, THREADS, 0, queue>>>(grid, indices, outer, tile, codes);
    else
      dequantize_vectors<false><<<blocks, THREADS, 0, queue>>>(grid, indices, outer, tile, codes);
  } else {
    dequantize_planes<<<blocks_for(outer * inner, THREADS), THREADS, 0, queue>>>(grid, indices, outer, inner, codes);
  }
  return launch_status();
}

int32_t tmc_cuda_fsq_backward(const tmc_grid *host, const void *latents, int32_t dtype, const float *grad_codes,
                              int64_t outer, int64_t inner, void *grad_latents, void *stream) {
  DeviceGrid grid;
  if (!make_grid(host, &grid) || !valid_sizes(outer, inner)) return TMC_EARGUMENT;
  const int64_t total = outer * inner * grid.dims;
  if (total == 0) return TMC_OK;
  TMC_FOR_DTYPE(dtype, launch_backward(grid, static_cast<const T *>(latents), grad_codes, total, inner,
                                       static_cast<T *>(grad_latents), static_cast<cudaStream_t>(stream)))
  return launch_status();
}

int32_t tmc_cuda_fsq_project_quantize(const tmc_grid *host, const void *x, int32_t dtype, int64_t n, int64_t dim,
                                      const float *weight, const float *bias, float *latents, float *codes,
                                      int32_t *indices, void *stream) {
  DeviceGrid grid;
  if (!make_grid(host, &grid) || !valid_sizes(n, dim)) return TMC_EARGUMENT;
  if (n == 0) return TMC_OK;
  TMC_FOR_NARROW(dtype, launch_project(grid, static_cast<const T *>(x), n, dim, weight, bias, latents, codes,
                                       indices, static_cast<cudaStream_t>(stream)))
  return launch_status();
}

int32_t tmc_cuda_fsq_dequantize_project(const tmc_grid *host, const int32_t *indices, int64_t n, int64_t dim,
                                        const float *weight, const float *bias, void *out, int32_t dtype,
                                        void *stream) {
  DeviceGrid grid;
  if (!make_grid(host, &grid) || !valid_sizes(n, dim)) return TMC_EARGUMENT;
  if (n == 0 || dim == 0) return TMC_OK;
  TMC_FOR_DTYPE(dtype, launch_expand(grid, indices, n, dim, weight, bias, static_cast<T *>(out),
                                     static_cast<cudaStream_t>(stream)))
  return launch_status();
}

}  // extern "C"
