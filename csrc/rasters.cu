// The two steps between rasters and tiles on CUDA. Every operation is rounded on its own (no fused
// multiply-add), so the bits are those of the CPU.

#include "device.cuh"

namespace tmc {

template <typename In, typename Out>
static __global__ void __launch_bounds__(THREADS)
    normalize_tiles(const In *raster, int64_t channels, int64_t height, int64_t width, const uint8_t *mask,
                    const float *mean, const float *std, float fill, int64_t tile, const int64_t *row_starts,
                    int64_t rows, const int64_t *col_starts, int64_t cols, Out *tiles) {
  const int64_t total = rows * cols * channels * tile * tile;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; at < total;
       at += static_cast<int64_t>(gridDim.x) * THREADS) {
    const int64_t line = at / tile, plane = line / tile, channel = plane % channels, place = plane / channels;
    const int64_t y = row_starts[place / cols] + line % tile, x = col_starts[place % cols] + at % tile;
    float value = fill;
    if (y >= 0 && y < height && x >= 0 && x < width && (mask == nullptr || mask[y * width + x] != 0)) {
      const float raw = to_float(raster[(channel * height + y) * width + x]);
      const float z = __fdiv_rn(__fsub_rn(raw, mean[channel]), std[channel]);
      value = z == z ? z : fill;
    }
    store(tiles + at, value);
  }
}

static __device__ __forceinline__ float whole(float value, float low, float high) {
  return rintf(fminf(fmaxf(value, low), high));
}

static __device__ __forceinline__ void put(float *to, float value) { *to = value; }
static __device__ __forceinline__ void put(uint8_t *to, float value) {
  *to = static_cast<uint8_t>(static_cast<int32_t>(whole(value, 0.0f, 255.0f)));
}
static __device__ __forceinline__ void put(uint16_t *to, float value) {
  *to = static_cast<uint16_t>(static_cast<int32_t>(whole(value, 0.0f, 65535.0f)));
}
static __device__ __forceinline__ void put(int16_t *to, float value) {
  *to = static_cast<int16_t>(static_cast<int32_t>(whole(value, -32768.0f, 32767.0f)));
}

template <typename In, typename Out>
static __global__ void __launch_bounds__(THREADS)
    blend_pixels(const In *tiles, int64_t channels, int64_t tile, const int64_t *row_starts, int64_t rows,
                 const int64_t *col_starts, int64_t cols, const float *row_weights, const float *col_weights,
                 const float *mean, const float *std, const uint8_t *mask, float fill, int64_t height, int64_t width,
                 Out *raster) {
  const int64_t total = channels * height * width;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; at < total;
       at += static_cast<int64_t>(gridDim.x) * THREADS) {
    const int64_t line = at / width, x = at - line * width, channel = line / height, y = line - channel * height;
    float sum = 0.0f, weights = 0.0f;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = y - row_starts[r];
      if (row < 0 || row >= tile) continue;
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t col = x - col_starts[c];
        if (col < 0 || col >= tile) continue;
        const float weight = __fmul_rn(row_weights[r * tile + row], col_weights[c * tile + col]);
        if (weight == 0.0f) continue;
        const float value = to_float(tiles[(((r * cols + c) * channels + channel) * tile + row) * tile + col]);
        sum = __fadd_rn(sum, __fmul_rn(weight, value));
        weights = __fadd_rn(weights, weight);
      }
    }
    const float value = __fadd_rn(__fmul_rn(__fdiv_rn(sum, weights), std[channel]), mean[channel]);
    const bool known = value == value && (mask == nullptr || mask[y * width + x] != 0);
    put(raster + at, known ? value : fill);
  }
}

static int64_t volume(int64_t a, int64_t b, int64_t c) {
  const int64_t most = INT64_MAX / 1024;
  if (a < 0 || b < 0 || c < 0) return -1;
  if (a == 0 || b == 0 || c == 0) return 0;
  if (a > most / b || a * b > most / c) return -1;
  return a * b * c;
}

}  // namespace tmc

using namespace tmc;

#define TMC_FOR_TILE(dtype, type, call)                               \
  switch (dtype) {                                                    \
    case TMC_F32: { using type = float; call; } break;                \
    case TMC_F16: { using type = __half; call; } break;               \
    case TMC_BF16: { using type = __nv_bfloat16; call; } break;       \
    default: return TMC_EDTYPE;                                       \
  }

#define TMC_FOR_RASTER(dtype, type, call)                             \
  switch (dtype) {                                                    \
    case TMC_F32: { using type = float; call; } break;                \
    case TMC_U8: { using type = uint8_t; call; } break;               \
    case TMC_U16: { using type = uint16_t; call; } break;             \
    case TMC_I16: { using type = int16_t; call; } break;              \
    default: return TMC_EDTYPE;                                       \
  }

template <typename In>
static int32_t normalize_to(const In *raster, int64_t channels, int64_t height, int64_t width, const uint8_t *mask,
                            const float *mean, const float *std, float fill, int64_t tile, const int64_t *row_starts,
                            int64_t rows, const int64_t *col_starts, int64_t cols, void *tiles, int32_t tile_dtype,
                            cudaStream_t stream) {
  const int64_t total = rows * cols * channels * tile * tile;
  if (total == 0) return TMC_OK;
  const unsigned blocks = blocks_for(total, THREADS);
  TMC_FOR_TILE(tile_dtype, Out,
               (normalize_tiles<In, Out><<<blocks, THREADS, 0, stream>>>(
                   raster, channels, height, width, mask, mean, std, fill, tile, row_starts, rows, col_starts, cols,
                   static_cast<Out *>(tiles))))
  return launch_status();
}

template <typename Out>
static int32_t blend_to(const void *tiles, int32_t tile_dtype, int64_t channels, int64_t tile,
                        const int64_t *row_starts, int64_t rows, const int64_t *col_starts, int64_t cols,
                        const float *row_weights, const float *col_weights, const float *mean, const float *std,
                        const uint8_t *mask, float fill, int64_t height, int64_t width, Out *raster,
                        cudaStream_t stream) {
  const int64_t total = channels * height * width;
  if (total == 0) return TMC_OK;
  const unsigned blocks = blocks_for(total, THREADS);
  TMC_FOR_TILE(tile_dtype, In,
               (blend_pixels<In, Out><<<blocks, THREADS, 0, stream>>>(
                   static_cast<const In *>(tiles), channels, tile, row_starts, rows, col_starts, cols, row_weights,
                   col_weights, mean, std, mask, fill, height, width, raster)))
  return launch_status();
}

extern "C" {

int32_t tmc_cuda_normalize_patchify(const void *raster, int32_t dtype, int64_t channels, int64_t height, int64_t width,
                                    const uint8_t *mask, const float *mean, const float *std, float fill, int64_t tile,
                                    const int64_t *row_starts, int64_t rows, const int64_t *col_starts, int64_t cols,
                                    void *tiles, int32_t tile_dtype, void *stream) {
  const int64_t planes = volume(rows, cols, channels);
  if (volume(channels, height, width) < 0 || planes < 0 || volume(planes, tile, tile) < 0) return TMC_EARGUMENT;
  TMC_FOR_RASTER(dtype, In,
                 return normalize_to(static_cast<const In *>(raster), channels, height, width, mask, mean, std, fill,
                                     tile, row_starts, rows, col_starts, cols, tiles, tile_dtype,
                                     static_cast<cudaStream_t>(stream)))
}

int32_t tmc_cuda_blend(const void *tiles, int32_t tile_dtype, int64_t channels, int64_t tile,
                       const int64_t *row_starts, int64_t rows, const int64_t *col_starts, int64_t cols,
                       const float *row_weights, const float *col_weights, const float *mean, const float *std,
                       const uint8_t *mask, float fill, int64_t height, int64_t width, void *raster, int32_t dtype,
                       void *stream) {
  const int64_t planes = volume(rows, cols, channels);
  if (volume(channels, height, width) < 0 || planes < 0 || volume(planes, tile, tile) < 0) return TMC_EARGUMENT;
  TMC_FOR_RASTER(dtype, Out,
                 return blend_to(tiles, tile_dtype, channels, tile, row_starts, rows, col_starts, cols, row_weights,
                                 col_weights, mean, std, mask, fill, height, width, static_cast<Out *>(raster),
                                 static_cast<cudaStream_t>(stream)))
}

}  // extern "C"
