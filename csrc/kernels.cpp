// The kernels for one instruction set: compiled once for each, with that set's flags and
// -DTMC_ISA=baseline, avx2 or avx512. On Arm the baseline has NEON.
//
// Nothing of the standard library is used here: an inline function of it, compiled for AVX-512 and
// kept by the linker as the one copy, would crash an older machine.

#include "common.h"

#ifndef TMC_ISA
#define TMC_ISA baseline
#endif
#define TMC_JOIN(a, b) a##b
#define TMC_TABLE(isa) TMC_JOIN(kernels_, isa)

namespace tmc {

namespace {
#include "numbers.h"

#include "fsq_kernels.h"
#include "raster_kernels.h"
#include "curve_kernels.h"
#include "context_kernels.h"
#include "bit_kernels.h"
}  // namespace

extern const Kernels TMC_TABLE(TMC_ISA);
const Kernels TMC_TABLE(TMC_ISA) = {quantize,  dequantize, backward, project_quantize, dequantize_project,
                                    normalize, fill_row,   add_row,  write_row,
                                    compand_pool, interleave, double_row, context_code, code_bits};

}  // namespace tmc
