// Runs every CPU kernel over odd sizes with buffers of exactly the right size, for the sanitizers
// (test_fsq_build.py builds it with them), and compares instruction sets and layouts on the way.
// Prints the instruction sets it ran and exits with 0, or says what differs and exits with 1.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "tmcodec.h"

static uint64_t state = 88172645463325252ull;

static uint32_t next_random() {  // xorshift
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<uint32_t>(state >> 16);
}

static void check(bool good, const char *what) {
  if (!good) {
    fprintf(stderr, "%s differs on %s\n", what, tmc_isa());
    exit(1);
  }
}

// On the heap and of exactly `size` bytes, so that one byte beyond is an error. Never empty storage.
struct Buffer {
  explicit Buffer(int64_t size) : size(size), data(malloc(static_cast<size_t>(size))) { fill(); }
  ~Buffer() { free(data); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  void fill() {
    for (int64_t i = 0; i < size; ++i) static_cast<uint8_t *>(data)[i] = static_cast<uint8_t>(next_random());
  }
  bool operator==(const Buffer &other) const {
    return size == other.size && (size == 0 || memcmp(data, other.data, static_cast<size_t>(size)) == 0);
  }
  float *floats() { return static_cast<float *>(data); }
  int32_t *ints() { return static_cast<int32_t *>(data); }
  const int64_t size;
  void *const data;
};

struct Grid {
  explicit Grid(std::vector<int32_t> values) : levels(values) {
    for (int32_t level : levels) {
      for (int32_t k = 0; k + 1 < level; ++k) {
        const double p = (k + 0.5) / (level - 1);
        thresholds.push_back(static_cast<float>(log(p / (1 - p))));
      }
      shift.push_back(0.0f);
      span.push_back(static_cast<float>(level - 1));
      gain.push_back(1.0f);
    }
  }
  tmc_grid view() const {  // pointers, so made anew for every copy
    return {static_cast<int32_t>(levels.size()), 1.0f, levels.data(), thresholds.data(), shift.data(), span.data(),
            shift.data(), gain.data()};
  }
  int32_t index_of(const float *vector, int64_t step) const {
    int64_t index = 0, basis = 1, first = 0;
    for (size_t d = 0; d < levels.size(); ++d) {
      int64_t digit = 0;
      for (int32_t k = 0; k + 1 < levels[d]; ++k) digit += vector[static_cast<int64_t>(d) * step] > thresholds[first + k];
      index += digit * basis;
      basis *= levels[d];
      first += levels[d] - 1;
    }
    return static_cast<int32_t>(index);
  }
  std::vector<int32_t> levels;
  std::vector<float> thresholds, shift, span, gain;
};

static const int64_t item_size[] = {4, 8, 2, 2, 1, 2, 2};

static void run_quantize(const Grid &grid, int64_t outer, int64_t inner, int32_t threads) {
  const tmc_grid c = grid.view();
  const int64_t dims = c.dims, n = outer * inner;
  for (int32_t dtype = TMC_F32; dtype <= TMC_BF16; ++dtype) {
    Buffer latents(n * dims * item_size[dtype]), grads(n * dims * 4), out(n * dims * item_size[dtype]);
    if (dtype == TMC_F32)  // random bits are mostly huge or tiny: half of them near the edges
      for (int64_t i = 0; i < n * dims; i += 2) latents.floats()[i] = static_cast<float>(next_random() % 8192) / 1024 - 4;
    Buffer codes(n * dims * 4), indices(n * 4), alone(n * 4), again(n * dims * 4);
    check(tmc_fsq_quantize(&c, latents.data, dtype, outer, inner, codes.floats(), indices.ints(), threads) == 0, "status");
    check(tmc_fsq_quantize(&c, latents.data, dtype, outer, inner, nullptr, alone.ints(), 1) == 0, "status");
    check(indices == alone, "indices alone");
    check(tmc_fsq_dequantize(&c, indices.ints(), outer, inner, again.floats(), threads) == 0, "status");
    check(codes == again, "dequantize");
    check(tmc_fsq_backward(&c, latents.data, dtype, grads.floats(), outer, inner, out.data, threads) == 0, "status");
    if (dtype != TMC_F32) continue;
    for (int64_t p = 0; p < n; ++p) {
      const float *vector = latents.floats() + (p / inner) * dims * inner + p % inner;
      check(indices.ints()[p] == grid.index_of(vector, inner), "quantize");
    }
  }
  Buffer any(n * 4), codes(n * dims * 4);  // indices outside the codebook
  check(tmc_fsq_dequantize(&c, any.ints(), outer, inner, codes.floats(), threads) == 0, "status");
}

static void run_project(const Grid &grid, int64_t n, int64_t dim, int32_t threads) {
  const tmc_grid c = grid.view();
  const int64_t dims = c.dims;
  for (int32_t dtype = TMC_F32; dtype <= TMC_BF16; ++dtype) {
    Buffer x(n * dim * item_size[dtype]), weight(dims * dim * 4), bias(dims * 4);
    Buffer latents(n * dims * 4), codes(n * dims * 4), indices(n * 4), alone(n * 4);
    check(tmc_fsq_project_quantize(&c, x.data, dtype, n, dim, weight.floats(), bias.floats(), latents.floats(),
                                   codes.floats(), indices.ints(), threads) == 0, "status");
    for (int64_t p = 0; p < n; ++p)
      check(indices.ints()[p] == grid.index_of(latents.floats() + p * dims, 1), "project");
    check(tmc_fsq_project_quantize(&c, x.data, dtype, n, dim, weight.floats(), bias.floats(), nullptr, nullptr,
                                   alone.ints(), 1) == 0, "status");
    check(indices == alone, "project alone");
    Buffer out(n * dim * item_size[dtype]), columns(dim * 4);
    check(tmc_fsq_dequantize_project(&c, indices.ints(), n, dim, weight.floats(), columns.floats(), out.data,
                                     dtype, threads) == 0, "status");
    check(tmc_fsq_dequantize_project(&c, indices.ints(), n, dim, weight.floats(), nullptr, out.data, dtype, 1) == 0,
          "status");
  }
}

static void run_rasters(int64_t channels, int64_t height, int64_t width, int64_t tile, std::vector<int64_t> rows,
                        std::vector<int64_t> cols, int32_t threads) {
  const int64_t r = static_cast<int64_t>(rows.size()), c = static_cast<int64_t>(cols.size());
  Buffer mask(height * width), mean(channels * 4), std(channels * 4), row_weights(r * tile * 4), col_weights(c * tile * 4);
  for (int32_t dtype : {TMC_F32, TMC_U8, TMC_U16, TMC_I16})
    for (int32_t tile_dtype : {TMC_F32, TMC_F16, TMC_BF16})
      for (const uint8_t *known : {static_cast<const uint8_t *>(mask.data), static_cast<const uint8_t *>(nullptr)}) {
        Buffer raster(channels * height * width * item_size[dtype]), tiles(r * c * channels * tile * tile * item_size[tile_dtype]);
        check(tmc_normalize_patchify(raster.data, dtype, channels, height, width, known, mean.floats(), std.floats(),
                                     0.5f, tile, rows.data(), r, cols.data(), c, tiles.data, tile_dtype, threads) == 0, "status");
        check(tmc_blend(tiles.data, tile_dtype, channels, tile, rows.data(), r, cols.data(), c, row_weights.floats(),
                        col_weights.floats(), mean.floats(), std.floats(), known, 0.5f, height, width, raster.data,
                        dtype, threads) == 0, "status");
      }
}

static void run_curves(int64_t batch, int64_t channels, int64_t rows, int64_t cols, int64_t cell, int32_t threads) {
  const int64_t height = 2 * cell * rows, width = 2 * cell * cols, pixels = batch * channels * height * width;
  Buffer picture(pixels * 4), mean(channels * 4), std(channels * 4);
  for (int64_t i = 0; i < pixels; ++i) picture.floats()[i] = static_cast<float>(next_random() % 20000) - 5000;
  for (int32_t kind : {TMC_LINEAR, TMC_SQRT}) {
    const tmc_curve curve = {kind, 1000.0f, 60.0f, 7.75f};
    Buffer cells(pixels), alone(pixels), doubled(pixels * 16);
    check(tmc_compand_cells(picture.floats(), batch, channels, height, width, &curve, mean.floats(), std.floats(), cell,
                            cells.floats(), threads) == 0, "status");
    check(tmc_compand_cells(picture.floats(), batch, channels, height, width, &curve, mean.floats(), std.floats(), cell,
                            alone.floats(), 1) == 0, "status");
    check(cells == alone, "cells");
    check(tmc_expand_double(picture.floats(), batch, channels, height, width, &curve, mean.floats(), std.floats(), 0.0f,
                            65535.0f, doubled.floats(), threads) == 0, "status");
    check(tmc_compand_cells(nullptr, 1, 1, 7, 8, &curve, nullptr, nullptr, 4, nullptr, 1) == TMC_EARGUMENT, "height");
    check(tmc_compand_cells(nullptr, INT64_MAX, 4, 8, 8, &curve, nullptr, nullptr, 4, nullptr, 1) == TMC_EARGUMENT, "size");
  }
  const tmc_curve unknown = {2, 0.0f, 1.0f, 1.0f};
  check(tmc_expand_double(nullptr, 0, 1, 1, 1, &unknown, nullptr, nullptr, 0, 1, nullptr, 1) == TMC_EARGUMENT, "curve");
}

// Decodes what was coded, cut short, longer and changed, and noise: any answer but a crash.
template <typename Decode>
static void run_damage(const Buffer &coded, int64_t length, Decode decode) {
  for (int64_t size : {int64_t(0), int64_t(1), length / 2, length - 1, length, length + 7}) {
    if (size < 0) continue;
    for (int32_t changed = 0; changed < 3; changed++) {
      Buffer data(size);  // noise
      if (changed < 2 && size <= length) memcpy(data.data, coded.data, static_cast<size_t>(size));
      if (changed == 1 && size) static_cast<uint8_t *>(data.data)[next_random() % size] ^= 1 << next_random() % 8;
      const int32_t status = decode(static_cast<uint8_t *>(data.data), size);
      check(status == TMC_OK || status == TMC_EDAMAGED, "status");
    }
  }
}

static void run_bits(int64_t planes, int64_t rows, int64_t cols, uint32_t ones) {
  const int64_t count = planes * rows * cols;
  Buffer bits(count), back(count), coded(planes * rows * (cols + 1) * 3 + 6);
  uint8_t *values = static_cast<uint8_t *>(bits.data);
  for (int64_t i = 0; i < count; ++i) values[i] = i % (5 * cols) < 2 * cols || next_random() % 100 < ones;
  int64_t length = 0;
  uint8_t *to = static_cast<uint8_t *>(coded.data);
  check(tmc_bits_code(0, values, planes, rows, cols, to, coded.size, &length) == TMC_OK, "status");
  auto decode = [&](uint8_t *data, int64_t size) {
    int64_t read = 0;
    return tmc_bits_code(1, static_cast<uint8_t *>(back.data), planes, rows, cols, data, size, &read);
  };
  check(decode(to, length) == TMC_OK && back == bits, "bits");
  run_damage(coded, length, decode);
}

// A model of the context coder with a small random network, a reference and all contexts.
struct Context {
  explicit Context(std::vector<int32_t> l) : levels(l), digits(static_cast<int32_t>(l.size())) {
    const int32_t d = digits;
    for (int32_t k = 0; k < d; k++) order.push_back(d - 1 - k), last_rows.push_back(symbols), symbols += levels[k];
    last_rows.push_back(symbols);
    for (int32_t s = 0; s < 5; s++)
      for (int32_t k = 0; k < d; k++) first_rows.push_back(rows), rows += levels[k] + 1;
    previous_rows.assign(d * d, -1);
    for (int32_t k = 0; k < d; k++)
      for (int32_t j = k + 1; j < d; j++) previous_rows[k * d + j] = before, before += levels[j];
    for (int32_t k = 0; k < d; k++) {
      const int32_t sizes[6] = {1, levels[k] + 1, levels[k] + 1, k + 1 < d ? levels[k + 1] : 1,
                                (levels[k] + 1) * (levels[k] + 1), levels[k] + 1};
      for (int32_t size : sizes) {
        state_rows.push_back(static_cast<int32_t>(states)), count_rows.push_back(static_cast<int32_t>(counts));
        states += size * levels[k], counts += size;
      }
    }
    for (int32_t i = 0; i < 6 * 64; i++) rates.push_back(30000 / (i % 64 + 1));
    for (int32_t i = 0; i < 1024; i++) exp2s.push_back(static_cast<int32_t>(65536 * pow(2.0, -i / 1024.0)));
    small(first, rows * 16), small(first_bias, 16), small(second, 256), small(heads, d * 256);
    small(previous, before * 16), small(last, symbols * 16);
    wide(second_bias, 16), wide(head_bias, d * 16), wide(last_bias, symbols);
  }
  void small(std::vector<int16_t> &numbers, int32_t count) {
    for (int32_t i = 0; i < count; i++) numbers.push_back(static_cast<int16_t>(next_random() % 401) - 200);
  }
  void wide(std::vector<int32_t> &numbers, int32_t count) {
    for (int32_t i = 0; i < count; i++) numbers.push_back(static_cast<int32_t>(next_random() % 40001) - 20000);
  }
  tmc_context_model view() const {
    return {digits, 5, 16, 16, 16, 700, levels.data(), order.data(), slots.data(), first_rows.data(), first.data(),
            first_bias.data(), second.data(), second_bias.data(), heads.data(), head_bias.data(), previous_rows.data(),
            previous.data(), last_rows.data(), last.data(), last_bias.data(), rates.data(), state_rows.data(),
            count_rows.data(), exp2s.data(), states, counts};
  }
  std::vector<int32_t> levels, order, first_rows, previous_rows, last_rows, rates, exp2s, state_rows, count_rows;
  std::vector<int32_t> slots = {0, 0, -1, 0, -1, 0, 0, -2, 2, 1, 0, 0, 1, 2, -2}, second_bias, head_bias, last_bias;
  std::vector<int16_t> first, first_bias, second, heads, previous, last;
  int32_t digits, symbols = 0, rows = 0, before = 0;
  int64_t states = 0, counts = 0;
};

static void run_context(const Context &context, int64_t rows, int64_t cols) {
  const tmc_context_model model = context.view();
  const int64_t d = context.digits, plane = (rows + 4) * (cols + 4) * d;
  Buffer planes(2 * plane * 2), back(2 * plane * 2), coded(rows * cols * d * 4 + 6);
  int16_t *cells = static_cast<int16_t *>(planes.data), *other = static_cast<int16_t *>(back.data);
  for (int64_t i = 0; i < 2 * plane; ++i) {
    const int64_t r = i % plane / d / (cols + 4), c = i / d % (cols + 4), level = context.levels[i % d];
    const bool inside = r >= 2 && r < rows + 2 && c >= 2 && c < cols + 2;
    cells[i] = static_cast<int16_t>(inside ? next_random() % level : level);
    other[i] = inside && i < plane ? int16_t(0) : cells[i];
  }
  int64_t length = 0;
  uint8_t *to = static_cast<uint8_t *>(coded.data);
  check(tmc_context_code(&model, 0, cells, rows, cols, to, coded.size, &length) == TMC_OK, "status");
  auto decode = [&](uint8_t *data, int64_t size) {
    int64_t read = 0;
    return tmc_context_code(&model, 1, other, rows, cols, data, size, &read);
  };
  check(decode(to, length) == TMC_OK && back == planes, "tokens");
  run_damage(coded, length, decode);
}

static void run_coder_refusals() {
  uint8_t byte = 0;
  int64_t length = 0;
  for (int64_t bad : {int64_t(0), int64_t(-1), INT64_MAX})
    check(tmc_bits_code(1, &byte, 1, bad, 1, &byte, 1, &length) == TMC_EARGUMENT, "size");
  check(tmc_bits_code(1, &byte, INT64_MAX / 2, 3, INT64_MAX, &byte, 1, &length) == TMC_EARGUMENT, "overflow");
  check(tmc_bits_code(0, &byte, 1, 1, 1, &byte, 11, &length) == TMC_EARGUMENT, "room");
  check(tmc_bits_code(1, nullptr, 1, 1, 1, &byte, 1, &length) == TMC_EARGUMENT, "nothing");
  check(tmc_context_code(nullptr, 1, nullptr, 1, 1, &byte, 1, &length) == TMC_EARGUMENT, "no model");
}

static void run_refusals(const Grid &grid) {
  const tmc_grid c = grid.view();
  Grid one({1, 4}), large({65537}), many(std::vector<int32_t>(31, 2));
  for (const tmc_grid &bad : {one.view(), large.view(), many.view()})
    check(tmc_fsq_quantize(&bad, nullptr, TMC_F32, 0, 1, nullptr, nullptr, 1) == TMC_EARGUMENT, "levels");
  check(tmc_fsq_quantize(nullptr, nullptr, TMC_F32, 0, 1, nullptr, nullptr, 1) == TMC_EARGUMENT, "no grid");
  check(tmc_fsq_quantize(&c, nullptr, TMC_F32, -1, 1, nullptr, nullptr, 1) == TMC_EARGUMENT, "size");
  check(tmc_fsq_quantize(&c, nullptr, TMC_F32, INT64_MAX, 2, nullptr, nullptr, 1) == TMC_EARGUMENT, "overflow");
  check(tmc_fsq_quantize(&c, nullptr, TMC_U8, 0, 1, nullptr, nullptr, 1) == TMC_EDTYPE, "type");
  check(tmc_fsq_quantize(&c, nullptr, TMC_F32, 0, 1, nullptr, nullptr, 1) == TMC_OK, "nothing");
  const int64_t far[] = {INT64_MAX}, zero[] = {0};
  check(tmc_normalize_patchify(nullptr, TMC_U8, 1, 0, 0, nullptr, nullptr, nullptr, 0, 1, far, 1, zero, 1, nullptr,
                               TMC_F32, 1) == TMC_EARGUMENT, "start");
  check(tmc_set_isa("mmx") == TMC_EARGUMENT, "instruction set");
}

int main() {
  const std::vector<Grid> grids = {Grid({8, 8, 8, 6, 5}), Grid({16}), Grid({3, 200, 70}), Grid(std::vector<int32_t>(30, 2)),
                                   Grid({9, 9, 9}), Grid({2, 3, 4, 5, 6, 7}), Grid({65536})};
  for (const char *isa : {"baseline", "avx2", "avx512"}) {
    if (tmc_set_isa(isa) != TMC_OK) continue;
    printf("%s\n", tmc_isa());
    for (const Grid &grid : grids) {
      for (int64_t n : {0, 1, 2, 15, 16, 17, 401, 1000}) run_quantize(grid, n, 1, 3);
      for (int64_t inner : {0, 2, 3, 17, 450}) run_quantize(grid, 3, inner, 2);
      for (int64_t dim : {0, 1, 15, 16, 17, 100}) run_project(grid, 37, dim, 2);
      run_project(grid, 0, 16, 2);
    }
    run_quantize(grids[0], 70001, 1, 4);  // several threads
    run_project(grids[0], 2001, 64, 4);
    run_rasters(2, 13, 19, 8, {0, 5, -3, 100}, {-4, 6, 15}, 2);
    run_rasters(3, 300, 500, 64, {0, 50, 240}, {0, 60, 440}, 4);
    run_rasters(1, 0, 0, 4, {0}, {0}, 1);
    run_rasters(0, 5, 5, 4, {0}, {}, 1);
    run_curves(2, 3, 2, 5, 8, 3);
    run_curves(1, 2, 3, 101, 3, 2);
    run_curves(1, 1, 1, 300, 1, 1);
    for (uint32_t ones : {0, 30, 99, 100}) run_bits(1, 23, 41, ones);
    run_bits(3, 17, 9, 95);
    for (int64_t cols : {1, 2, 3, 6, 7}) run_bits(2, 5, cols, 60), run_bits(1, 1, cols, 50);
    const Context image({8, 8, 8, 6, 5}), cover({7, 5, 5, 5, 5}), one({16});
    for (const Context *context : {&image, &cover, &one}) run_context(*context, 9, 13), run_context(*context, 1, 1);
    run_coder_refusals();
    run_curves(0, 2, 1, 1, 8, 1);
    run_refusals(grids[0]);
  }
  return 0;
}
