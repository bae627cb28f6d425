/* C interface of tmcodec's kernels: raw pointers and sizes, no PyTorch, no C++ types.
 *
 * One header for two libraries: libtmcodec_cpu (fsq.cpp, rasters.cpp, curves.cpp; functions tmc_*) and
 * libtmcodec_cuda (fsq.cu, rasters.cu; functions tmc_cuda_*, the same with a stream).
 *
 * Every function returns 0, or one of the TMC_E* codes. Arrays are C-contiguous. Where a function
 * takes `outer` and `inner`, latents and codes are [outer, dims, inner] and indices
 * [outer, inner]: channel-last has inner = 1, channel-first has inner = height * width.
 * Sizes may be 0; then pointers are not read. Outputs must not overlap inputs.
 */
#ifndef TMCODEC_H
#define TMCODEC_H

#include <stdint.h>

#if defined(__GNUC__)
#define TMC_API __attribute__((visibility("default")))
#else
#define TMC_API
#endif

/* Raised with every change of a signature, a struct or a meaning below. */
#define TMC_ABI_VERSION 3

#define TMC_OK 0
#define TMC_EARGUMENT (-1) /* a size, a level or a pointer is out of its range */
#define TMC_EDTYPE (-2)    /* this function does not take this data type */
#define TMC_EMEMORY (-3)   /* no memory for scratch */
#define TMC_ECUDA (-4)     /* a CUDA call failed */

/* Levels are 2 or more and their product fits int32, so there are never more dimensions. */
#define TMC_MAX_DIMS 30
#define TMC_MAX_LEVEL 65536

enum tmc_dtype {
  TMC_F32 = 0,
  TMC_F64 = 1,
  TMC_F16 = 2,
  TMC_BF16 = 3,
  TMC_U8 = 4,
  TMC_U16 = 5,
  TMC_I16 = 6
};

#ifdef __cplusplus
extern "C" {
#endif

/* The constants of one level list, made by tmcodec/fsq/levels.py; all pointers are host memory.
 *
 *   digit_c = sum over k of [float(z_c) > thresholds_c[k]]    (NaN exceeds nothing: digit 0)
 *   index   = sum over c of digit_c * basis_c,   basis_c = levels_0 * .. * levels_{c-1}
 *   code_c  = (digit_c - code_shift_c) / code_span_c           in float32
 *   dcode_c/dz_c = grad_gain_c * e / (1 + e)^2,  e = exp(-grad_rate * |z_c + grad_shift_c|)
 */
typedef struct tmc_grid {
  int32_t dims;
  float grad_rate;
  const int32_t *levels;     /* [dims] */
  const float *thresholds;   /* [sum(levels - 1)], ascending within a channel */
  const float *code_shift;   /* [dims] */
  const float *code_span;    /* [dims] */
  const float *grad_shift;   /* [dims] */
  const float *grad_gain;    /* [dims] */
} tmc_grid;

/* ---------------------------------------------------------------- the library itself */

TMC_API int32_t tmc_abi_version(void);
/* Name of the instruction set in use: "avx512", "avx2" or "baseline". */
TMC_API const char *tmc_isa(void);
/* Use another one (for tests); TMC_EARGUMENT where this machine has it not. */
TMC_API int32_t tmc_set_isa(const char *name);
/* 1 where the library was built with OpenMP. */
TMC_API int32_t tmc_has_openmp(void);

/* ---------------------------------------------------------------- FSQ on the CPU */

/* Latents (F32, F64, F16 or BF16) to codes and indices; either output may be NULL. */
TMC_API int32_t tmc_fsq_quantize(const tmc_grid *grid, const void *latents, int32_t dtype, int64_t outer,
                                 int64_t inner, float *codes, int32_t *indices, int32_t threads);

/* Indices to codes. An index outside the codebook wraps: digits are (index // basis) % level. */
TMC_API int32_t tmc_fsq_dequantize(const tmc_grid *grid, const int32_t *indices, int64_t outer, int64_t inner,
                                   float *codes, int32_t threads);

/* Backward of the straight-through estimator; grad_latents has the data type of latents. */
TMC_API int32_t tmc_fsq_backward(const tmc_grid *grid, const void *latents, int32_t dtype,
                                 const float *grad_codes, int64_t outer, int64_t inner, void *grad_latents,
                                 int32_t threads);

/* x [n, dim] times weight [dims, dim] plus bias [dims] (or NULL) in float32, then quantize.
 * latents [n, dims], codes [n, dims] and indices [n] may each be NULL. Products are summed in 16
 * lanes and then pairwise, so that all instruction sets give the same bits. */
TMC_API int32_t tmc_fsq_project_quantize(const tmc_grid *grid, const void *x, int32_t dtype, int64_t n,
                                         int64_t dim, const float *weight, const float *bias, float *latents,
                                         float *codes, int32_t *indices, int32_t threads);

/* Codes of indices [n] times weight [dims, dim] plus bias [dim] (or NULL): out [n, dim]. The
 * weight is transposed against a torch Linear's, so that rows are read as they are written. */
TMC_API int32_t tmc_fsq_dequantize_project(const tmc_grid *grid, const int32_t *indices, int64_t n,
                                           int64_t dim, const float *weight, const float *bias, void *out,
                                           int32_t dtype, int32_t threads);

/* ---------------------------------------------------------------- rasters on the CPU */

/* Cut raster [channels, height, width] (U8, U16, I16 or F32) into tiles
 * [rows, cols, channels, tile, tile] (F32, F16 or BF16) of (value - mean) / std. Tile (r, c) begins
 * at pixel (row_starts[r], col_starts[c]), which may lie outside. Pixels outside the raster, with
 * mask 0 (mask [height, width], or NULL), or NaN become `fill`. */
TMC_API int32_t tmc_normalize_patchify(const void *raster, int32_t dtype, int64_t channels, int64_t height,
                                       int64_t width, const uint8_t *mask, const float *mean,
                                       const float *std, float fill, int64_t tile, const int64_t *row_starts,
                                       int64_t rows, const int64_t *col_starts, int64_t cols, void *tiles,
                                       int32_t tile_dtype, int32_t threads);

/* The mirror: raster = (sum of w * tile / sum of w) * std + mean, w = row_weights[r, y] *
 * col_weights[c, x]; in float32, tiles added in order. Integer outputs (U8, U16, I16) are rounded
 * half to even and saturate. Pixels of weight 0, with mask 0, or NaN become `fill`. */
TMC_API int32_t tmc_blend(const void *tiles, int32_t tile_dtype, int64_t channels, int64_t tile,
                          const int64_t *row_starts, int64_t rows, const int64_t *col_starts, int64_t cols,
                          const float *row_weights, const float *col_weights, const float *mean,
                          const float *std, const uint8_t *mask, float fill, int64_t height, int64_t width,
                          void *raster, int32_t dtype, int32_t threads);

/* ---------------------------------------------------------------- companding on the CPU only
 *
 * Two steps of the small tokenizers (tmcodec/networks/compand.py), in float32:
 *
 *   linear: y = v - origin
 *   sqrt:   y = sign(u) * (sqrt(|u| + knee) - root),   u = v - origin, root = sqrt(knee)
 *
 * and normalised z = (y - mean) / std, one mean and std a channel. */

enum tmc_curve_kind { TMC_LINEAR = 0, TMC_SQRT = 1 };

typedef struct tmc_curve {
  int32_t kind;
  float origin;
  float knee;
  float root;
} tmc_curve;

/* Physical picture [batch, channels, height, width] to means of 2x2 normalised pixels, gathered
 * into cells [batch, height / 2cell, width / 2cell, cell, cell, channels]; height and width are
 * multiples of 2cell. A mean is ((a + b) + c) + d over 4, row by row. */
TMC_API int32_t tmc_compand_cells(const float *picture, int64_t batch, int64_t channels, int64_t height,
                                  int64_t width, const tmc_curve *curve, const float *mean, const float *std,
                                  int64_t cell, float *cells, int32_t threads);

/* Normalised half [batch, channels, height, width], doubled bilinearly between pixel centres (the
 * edge repeats), to a physical picture [batch, channels, 2height, 2width] within low..high. */
TMC_API int32_t tmc_expand_double(const float *half, int64_t batch, int64_t channels, int64_t height,
                                  int64_t width, const tmc_curve *curve, const float *mean, const float *std,
                                  float low, float high, float *picture, int32_t threads);

/* ---------------------------------------------------------------- the same on CUDA
 *
 * Data pointers are device memory, a grid's pointers host memory; the grid travels as a kernel
 * argument, hence TMC_CUDA_MAX_THRESHOLDS. `stream` is a cudaStream_t. Nothing synchronizes.
 * project_quantize does not take F64 here.
 * mean, std, *_starts and *_weights are device memory. */

#define TMC_CUDA_MAX_THRESHOLDS 640

TMC_API int32_t tmc_cuda_abi_version(void);

/* Why the kernels cannot run on the calling thread's device, e.g. for want of a driver, or NULL where they
 * can. This initialises CUDA, which no forked child can use then. */
TMC_API const char *tmc_cuda_why_not(void);

/* The CUDA error behind the last TMC_ECUDA in this thread, in words. */
TMC_API const char *tmc_cuda_last_error(void);

TMC_API int32_t tmc_cuda_fsq_quantize(const tmc_grid *grid, const void *latents, int32_t dtype, int64_t outer,
                                      int64_t inner, float *codes, int32_t *indices, void *stream);
TMC_API int32_t tmc_cuda_fsq_dequantize(const tmc_grid *grid, const int32_t *indices, int64_t outer,
                                        int64_t inner, float *codes, void *stream);
TMC_API int32_t tmc_cuda_fsq_backward(const tmc_grid *grid, const void *latents, int32_t dtype,
                                      const float *grad_codes, int64_t outer, int64_t inner,
                                      void *grad_latents, void *stream);
TMC_API int32_t tmc_cuda_fsq_project_quantize(const tmc_grid *grid, const void *x, int32_t dtype, int64_t n,
                                              int64_t dim, const float *weight, const float *bias,
                                              float *latents, float *codes, int32_t *indices, void *stream);
TMC_API int32_t tmc_cuda_fsq_dequantize_project(const tmc_grid *grid, const int32_t *indices, int64_t n,
                                                int64_t dim, const float *weight, const float *bias,
                                                void *out, int32_t dtype, void *stream);
TMC_API int32_t tmc_cuda_normalize_patchify(const void *raster, int32_t dtype, int64_t channels,
                                            int64_t height, int64_t width, const uint8_t *mask,
                                            const float *mean, const float *std, float fill, int64_t tile,
                                            const int64_t *row_starts, int64_t rows,
                                            const int64_t *col_starts, int64_t cols, void *tiles,
                                            int32_t tile_dtype, void *stream);
TMC_API int32_t tmc_cuda_blend(const void *tiles, int32_t tile_dtype, int64_t channels, int64_t tile,
                               const int64_t *row_starts, int64_t rows, const int64_t *col_starts,
                               int64_t cols, const float *row_weights, const float *col_weights,
                               const float *mean, const float *std, const uint8_t *mask, float fill,
                               int64_t height, int64_t width, void *raster, int32_t dtype, void *stream);

#ifdef __cplusplus
}
#endif
#include "context.h"

#endif
