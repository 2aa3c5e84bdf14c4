/* The mean over an axis. */
#include "orbit_kernels.h"

void orbit_mean_s8(const orbit_mean *layer, const int8_t *input, int8_t *output) {
  for (int32_t outer = 0; outer < layer->outer; ++outer) {
    for (int32_t inner = 0; inner < layer->inner; ++inner) {
      int32_t sum = -layer->in_zero * layer->count;
      for (int32_t i = 0; i < layer->count; ++i) sum += input[i * layer->inner + inner];
      sum = orbit_requantize(sum, layer->multiplier, layer->shift) + layer->out_zero;
      *output++ = (int8_t)orbit_clamp(sum, INT8_MIN, INT8_MAX);
    }
    input += layer->count * layer->inner;
  }
}
