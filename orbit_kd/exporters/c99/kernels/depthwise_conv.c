/* Depthwise convolution: each input channel has out_c / in_c filters of its own. */
#include "orbit_kernels.h"

void orbit_depthwise_conv2d_s8(const orbit_conv *layer, const int8_t *input, int8_t *output) {
  const int8_t *weights = (const int8_t *)layer->weights;
  const int32_t filters = layer->out_c / layer->in_c;
  for (int32_t y = 0; y < layer->out_h; ++y) {
    for (int32_t x = 0; x < layer->out_w; ++x) {
      const int32_t top = y * layer->stride_h - layer->pad_top;
      const int32_t left = x * layer->stride_w - layer->pad_left;
      for (int32_t channel = 0; channel < layer->out_c; ++channel) {
        const int32_t in_channel = filters == 1 ? channel : channel / filters;
        int32_t sum = layer->bias[channel];
        for (int32_t ky = 0; ky < layer->kernel_h; ++ky) {
          const int32_t in_y = top + ky * layer->dilation_h;
          if (in_y < 0 || in_y >= layer->in_h) continue;
          for (int32_t kx = 0; kx < layer->kernel_w; ++kx) {
            const int32_t in_x = left + kx * layer->dilation_w;
            if (in_x < 0 || in_x >= layer->in_w) continue;
            sum += (input[(in_y * layer->in_w + in_x) * layer->in_c + in_channel] - layer->in_zero) *
                   weights[(ky * layer->kernel_w + kx) * layer->out_c + channel];
          }
        }
        sum = orbit_requantize(sum, layer->multiplier[channel], layer->shift[channel]) + layer->out_zero;
        *output++ = (int8_t)orbit_clamp(sum, layer->act_min, layer->act_max);
      }
    }
  }
}
