/* Convolution with weights as they are, for layers that the fast kernels do not hold: int8_t (out_c, kernel_h, kernel_w,
 * in_c), and the plain bias. */
#include "orbit_kernels.h"

void orbit_conv2d_plain_s8(const orbit_conv *layer, const int8_t *input, int8_t *output) {
  const int32_t in_c = layer->in_c;
  for (int32_t y = 0; y < layer->out_h; ++y) {
    for (int32_t x = 0; x < layer->out_w; ++x) {
      const int8_t *weights = (const int8_t *)layer->weights;
      for (int32_t channel = 0; channel < layer->out_c; ++channel) {
        int32_t sum = layer->bias[channel];
        for (int32_t ky = 0; ky < layer->kernel_h; ++ky) {
          const int32_t in_y = y * layer->stride_h - layer->pad_top + ky * layer->dilation_h;
          for (int32_t kx = 0; kx < layer->kernel_w; ++kx, weights += in_c) {
            const int32_t in_x = x * layer->stride_w - layer->pad_left + kx * layer->dilation_w;
            if (in_y >= 0 && in_y < layer->in_h && in_x >= 0 && in_x < layer->in_w) {
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
