/* Average pooling; places outside the image do not count. */
#include "orbit_kernels.h"

void orbit_average_pool_s8(const orbit_pool *layer, const int8_t *input, int8_t *output) {
  const int32_t channels = layer->channels;
  for (int32_t y = 0; y < layer->out_h; ++y) {
    const int32_t top = y * layer->stride_h - layer->pad_top;
    const int32_t first_y = top < 0 ? 0 : top;
    const int32_t last_y = top + layer->kernel_h < layer->in_h ? top + layer->kernel_h : layer->in_h;
    for (int32_t x = 0; x < layer->out_w; ++x) {
      const int32_t left = x * layer->stride_w - layer->pad_left;
      const int32_t first_x = left < 0 ? 0 : left;
      const int32_t last_x = left + layer->kernel_w < layer->in_w ? left + layer->kernel_w : layer->in_w;
      const int32_t count = (last_y - first_y) * (last_x - first_x);
      for (int32_t channel = 0; channel < channels; ++channel) {
        int32_t sum = 0;
        for (int32_t in_y = first_y; in_y < last_y; ++in_y) {
          for (int32_t in_x = first_x; in_x < last_x; ++in_x) {
            sum += input[(in_y * layer->in_w + in_x) * channels + channel];
          }
        }
        sum = (sum > 0 ? sum + count / 2 : sum - count / 2) / count; /* to nearest, halves away from zero */
        output[channel] = (int8_t)orbit_clamp(sum, layer->act_min, layer->act_max);
      }
      output += channels;
    }
  }
}
