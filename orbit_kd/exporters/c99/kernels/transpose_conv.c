/* Transposed convolution, from the output's side: an output pixel gathers the input pixels that reach it. */
#include "orbit_kernels.h"

void orbit_transpose_conv2d_s8(const orbit_conv *layer, const int8_t *input, int8_t *output) {
  const int32_t in_c = layer->in_c;
  for (int32_t y = 0; y < layer->out_h; ++y) {
    for (int32_t x = 0; x < layer->out_w; ++x) {
      const int8_t *weights = (const int8_t *)layer->weights;
      for (int32_t channel = 0; channel < layer->out_c; ++channel) {
        int32_t sum = layer->bias[channel];
        for (int32_t ky = 0; ky < layer->kernel_h; ++ky) {
          const int32_t from_y = y + layer->pad_top - ky;
          const int32_t in_y = from_y / layer->stride_h;
          const int meets = from_y >= 0 && in_y < layer->in_h && in_y * layer->stride_h == from_y;
          for (int32_t kx = 0; kx < layer->kernel_w; ++kx, weights += in_c) {
            const int32_t from_x = x + layer->pad_left - kx;
            const int32_t in_x = from_x / layer->stride_w;
            if (meets && from_x >= 0 && in_x < layer->in_w && in_x * layer->stride_w == from_x) {
              const int8_t *pixel = input + (in_y * layer->in_w + in_x) * in_c;
              for (int32_t i = 0; i < in_c; ++i) sum += (pixel[i] - layer->in_zero) * weights[i];
            }
          }
        }
        sum = orbit_requantize(sum, layer->multiplier[channel], layer->shift[channel]) + layer->out_zero;
        *output++ = (int8_t)orbit_clamp(sum, layer->act_min, layer->act_max);
      }
    }
  }
}
