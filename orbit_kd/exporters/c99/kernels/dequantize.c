/* int8 to real numbers. */
#include "orbit_kernels.h"

void orbit_dequantize_s8(const orbit_float *layer, const int8_t *input, float *output) {
  for (int32_t i = 0; i < layer->size; ++i) output[i] = layer->scale * (float)(input[i] - layer->zero);
}
