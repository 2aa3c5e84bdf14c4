/* The largest over an axis. */
#include "orbit_kernels.h"

void orbit_reduce_max_s8(const orbit_reduce *layer, const int8_t *input, int8_t *output) {
  for (int32_t outer = 0; outer < layer->outer; ++outer) {
    for (int32_t inner = 0; inner < layer->inner; ++inner) {
      int8_t most = INT8_MIN;
      for (int32_t i = 0; i < layer->count; ++i) {
        const int8_t value = input[i * layer->inner + inner];
        most = value > most ? value : most;
      }
      *output++ = most;
    }
    input += layer->count * layer->inner;
  }
}
