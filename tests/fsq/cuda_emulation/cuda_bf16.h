// __nv_bfloat16 on the host, with the conversions of the CPU kernels.
#pragma once
#include "cuda_fp16.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
static inline float __bfloat162float(__nv_bfloat16 v) { return host_numbers::to_float(host_numbers::bf16_t{v.bits}); }
static inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  host_numbers::bf16_t to;
  host_numbers::store(&to, v);
  return __nv_bfloat16{to.bits};
}
