/* Activations and other functions of one value, from a table. */
#include "orbit_kernels.h"

void orbit_lookup_s8(const orbit_lookup *layer, const int8_t *input, int8_t *output) {
  for (int32_t i = 0; i < layer->size; ++i) output[i] = layer->table[(uint8_t)input[i]];
}
