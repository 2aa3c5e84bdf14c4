/* Real numbers to int8: to nearest, halves away from zero. */
#include "orbit_kernels.h"

void orbit_quantize_f32(const orbit_float *layer, const float *input, int8_t *output) {
  for (int32_t i = 0; i < layer->size; ++i) {
    float steps = input[i] / layer->scale;
    steps = steps > 1024.0f ? 1024.0f : steps;
    steps = steps >= -1024.0f ? steps : -1024.0f; /* NaN too */
    int32_t whole = (int32_t)steps;
    const float rest = steps - (float)whole;
    whole += rest >= 0.5f ? 1 : rest <= -0.5f ? -1 : 0;
    output[i] = (int8_t)orbit_clamp(whole + layer->zero, INT8_MIN, INT8_MAX);
  }
}
