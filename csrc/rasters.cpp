// The two steps between rasters and tiles on the CPU. Rows are in raster_kernels.h.

#include "common.h"

#include <stdlib.h>

#include <atomic>

namespace tmc {

static bool is_raster(int32_t dtype) {
  return dtype == TMC_F32 || dtype == TMC_U8 || dtype == TMC_U16 || dtype == TMC_I16;
}

static bool is_tile(int32_t dtype) { return dtype == TMC_F32 || dtype == TMC_F16 || dtype == TMC_BF16; }

static int64_t clip(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Starts must leave room to add a tile's side without overflow.
static bool valid_starts(const int64_t *starts, int64_t count, int64_t tile) {
  for (int64_t i = 0; i < count; ++i)
    if (starts[i] < INT64_MIN / 4 || starts[i] > INT64_MAX / 4 || tile > INT64_MAX / 4) return false;
  return true;
}

}  // namespace tmc

using namespace tmc;

extern "C" {

int32_t tmc_normalize_patchify(const void *raster, int32_t dtype, int64_t channels, int64_t height, int64_t width,
                               const uint8_t *mask, const float *mean, const float *std, float fill, int64_t tile,
                               const int64_t *row_starts, int64_t rows, const int64_t *col_starts, int64_t cols,
                               void *tiles, int32_t tile_dtype, int32_t threads) {
  if (!is_raster(dtype) || !is_tile(tile_dtype)) return TMC_EDTYPE;
  const int64_t planes = volume(rows, cols, channels);
  if (volume(channels, height, width) < 0 || planes < 0 || volume(planes, tile, tile) < 0) return TMC_EARGUMENT;
  if (!valid_starts(row_starts, rows, tile) || !valid_starts(col_starts, cols, tile)) return TMC_EARGUMENT;
  const Kernels &row_kernels = kernels();
  // One unit of work is one row of one tile of one channel.
  parallel_for(planes * tile, 65536 / (tile + 1) + 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t plane = unit / tile, channel = plane % channels, place = plane / channels;
      const int64_t y = row_starts[place / cols] + unit % tile, x = col_starts[place % cols];
      const int64_t left = clip(-x, 0, tile), right = y < 0 || y >= height ? left : clip(width - x, left, tile);
      const int64_t at = unit * tile;
      row_kernels.fill_row(left, fill, tiles, tile_dtype, at);
      if (right > left)
        row_kernels.normalize(raster, dtype, (channel * height + y) * width + x + left,
                          mask != nullptr ? mask + y * width + x + left : nullptr, right - left, mean[channel],
                          std[channel], fill, tiles, tile_dtype, at + left);
      row_kernels.fill_row(tile - right, fill, tiles, tile_dtype, at + right);
    }
  });
  return TMC_OK;
}

int32_t tmc_blend(const void *tiles, int32_t tile_dtype, int64_t channels, int64_t tile, const int64_t *row_starts,
                  int64_t rows, const int64_t *col_starts, int64_t cols, const float *row_weights,
                  const float *col_weights, const float *mean, const float *std, const uint8_t *mask, float fill,
                  int64_t height, int64_t width, void *raster, int32_t dtype, int32_t threads) {
  if (!is_raster(dtype) || !is_tile(tile_dtype)) return TMC_EDTYPE;
  const int64_t planes = volume(rows, cols, channels);
  if (volume(channels, height, width) < 0 || planes < 0 || volume(planes, tile, tile) < 0) return TMC_EARGUMENT;
  if (!valid_starts(row_starts, rows, tile) || !valid_starts(col_starts, cols, tile)) return TMC_EARGUMENT;
  const Kernels &row_kernels = kernels();
  std::atomic<bool> failed{false};
  // One unit of work is one row of one channel of the raster.
  parallel_for(channels * height, 65536 / (width + 1) + 1, threads, [&](int64_t begin, int64_t end) {
    float *sums = static_cast<float *>(malloc((static_cast<size_t>(width) * 2 + 1) * sizeof(float)));
    if (sums == nullptr) {
      failed = true;
      return;
    }
    float *weights = sums + width;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t channel = unit / height, y = unit % height;
      for (int64_t x = 0; x < 2 * width; ++x) sums[x] = 0.0f;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = y - row_starts[r];
        if (row < 0 || row >= tile) continue;
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t x = col_starts[c], left = clip(-x, 0, tile), right = clip(width - x, left, tile);
          if (right > left)
            row_kernels.add_row(tiles, tile_dtype, (((r * cols + c) * channels + channel) * tile + row) * tile + left,
                        row_weights[r * tile + row], col_weights + c * tile + left, right - left,
                        sums + x + left, weights + x + left);
        }
      }
      row_kernels.write_row(sums, weights, mask != nullptr ? mask + y * width : nullptr, width, mean[channel],
                    std[channel], fill, raster, dtype, unit * width);
    }
    free(sums);
  });
  return failed ? TMC_EMEMORY : TMC_OK;
}

}  // extern "C"
