/* The sum of two tensors, which may be repeated along axes. */
#include "orbit_kernels.h"

void orbit_add_s8(const orbit_binary *layer, const int8_t *input1, const int8_t *input2, int8_t *output) {
  const int32_t *size = layer->size, *step1 = layer->step1, *step2 = layer->step2;
  for (int32_t i = 0; i < size[0]; ++i) {
    for (int32_t j = 0; j < size[1]; ++j) {
      for (int32_t k = 0; k < size[2]; ++k) {
        const int8_t *row1 = input1 + i * step1[0] + j * step1[1] + k * step1[2];
        const int8_t *row2 = input2 + i * step2[0] + j * step2[1] + k * step2[2];
        for (int32_t l = 0; l < size[3]; ++l) {
          const int32_t a = orbit_requantize((*row1 - layer->zero1) * (1 << 20), layer->multiplier1, layer->shift1);
          const int32_t b = orbit_requantize((*row2 - layer->zero2) * (1 << 20), layer->multiplier2, layer->shift2);
          const int32_t value = orbit_requantize(a + b, layer->multiplier, layer->shift);
          *output++ = (int8_t)orbit_clamp(value + layer->out_zero, layer->act_min, layer->act_max);
          row1 += step1[3];
          row2 += step2[3];
        }
      }
    }
  }
}
