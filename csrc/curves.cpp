// Companding at the ends of the small tokenizers on the CPU. Rows are in curve_kernels.h.

#include "common.h"

#include <stdlib.h>

#include <atomic>

namespace tmc {

static bool valid(const tmc_curve *curve) {
  return curve != nullptr && (curve->kind == TMC_LINEAR || curve->kind == TMC_SQRT);
}

}  // namespace tmc

using namespace tmc;

extern "C" {

int32_t tmc_compand_cells(const float *picture, int64_t batch, int64_t channels, int64_t height, int64_t width,
                          const tmc_curve *curve, const float *mean, const float *std, int64_t cell, float *cells,
                          int32_t threads) {
  if (!valid(curve) || volume(volume(batch, channels, height), width, 4) < 0 || cell < 1 || cell > INT32_MAX) return TMC_EARGUMENT;
  if (height % (2 * cell) != 0 || width % (2 * cell) != 0) return TMC_EARGUMENT;
  const int64_t rows = height / 2, count = width / 2;  // of the halved picture
  if (channels == 0 || count == 0) return TMC_OK;
  const Kernels &row_kernels = kernels();
  std::atomic<bool> failed{false};
  // One unit of work is one row of the halved picture, all channels.
  parallel_for(batch * rows, 65536 / (channels * width) + 1, threads, [&](int64_t begin, int64_t end) {
    float *planes = static_cast<float *>(malloc(static_cast<size_t>(channels * count) * sizeof(float)));
    if (planes == nullptr) {
      failed = true;
      return;
    }
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / rows, row = unit % rows;
      for (int64_t c = 0; c < channels; ++c) {
        const float *top = picture + ((image * channels + c) * height + 2 * row) * width;
        row_kernels.compand_pool(top, top + width, count, *curve, mean[c], std[c], planes + c * count);
      }
      const int64_t band = cell * channels;  // values of one row of one cell
      float *to = cells + (image * (rows / cell) + row / cell) * cell * count * channels + row % cell * band;
      row_kernels.interleave(planes, channels, count, count, cell, cell * band, to);
    }
    free(planes);
  });
  return failed ? TMC_EMEMORY : TMC_OK;
}

int32_t tmc_expand_double(const float *half, int64_t batch, int64_t channels, int64_t height, int64_t width,
                          const tmc_curve *curve, const float *mean, const float *std, float low, float high,
                          float *picture, int32_t threads) {
  if (!valid(curve) || volume(volume(batch, channels, height), width, 4) < 0) return TMC_EARGUMENT;
  if (width == 0 || channels == 0) return TMC_OK;
  const Kernels &row_kernels = kernels();
  // One unit of work is one row of the smaller picture and the two that come of it.
  parallel_for(batch * channels * height, 16384 / width + 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t c = unit / height % channels, row = unit % height;
      const float *middle = half + unit * width;
      const float *above = row > 0 ? middle - width : middle, *below = row + 1 < height ? middle + width : middle;
      float *to = picture + unit * 4 * width;
      row_kernels.double_row(middle, above, width, *curve, mean[c], std[c], low, high, to);
      row_kernels.double_row(middle, below, width, *curve, mean[c], std[c], low, high, to + 2 * width);
    }
  });
  return TMC_OK;
}

}  // extern "C"
