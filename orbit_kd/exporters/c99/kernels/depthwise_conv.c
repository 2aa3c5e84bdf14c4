/* Depthwise convolution: each input channel has out_c / in_c filters of its own. */
#include "orbit_kernels.h"

/* The taps of a pixel that meet the image, and where the first of them is. */
typedef struct {
  int32_t first_y, last_y, first_x, last_x; /* of the kernel; the last ones are left out */
  int32_t in_step, in_row;                  /* elements from a tap to the next, and to the one below */
  int32_t in_start, weight_start;           /* elements before the first tap's channel 0 */
} orbit_depthwise_taps;

static int32_t depthwise_first(int32_t at, int32_t dilation) {
  return at < 0 ? (-at + dilation - 1) / dilation : 0;
}

static int32_t depthwise_last(int32_t at, int32_t dilation, int32_t size, int32_t kernel) {
  const int32_t inside = (size - at + dilation - 1) / dilation;
  return inside < kernel ? inside : kernel;
}

static orbit_depthwise_taps depthwise_taps(const orbit_conv *layer, int32_t y, int32_t x) {
  const int32_t top = y * layer->stride_h - layer->pad_top, left = x * layer->stride_w - layer->pad_left;
  orbit_depthwise_taps taps;
  taps.first_y = depthwise_first(top, layer->dilation_h);
  taps.last_y = depthwise_last(top, layer->dilation_h, layer->in_h, layer->kernel_h);
  taps.first_x = depthwise_first(left, layer->dilation_w);
  taps.last_x = depthwise_last(left, layer->dilation_w, layer->in_w, layer->kernel_w);
  taps.in_step = layer->dilation_w * layer->in_c;
  taps.in_row = layer->dilation_h * layer->in_w * layer->in_c;
  taps.in_start = ((top + taps.first_y * layer->dilation_h) * layer->in_w + left + taps.first_x * layer->dilation_w) *
                  layer->in_c;
  taps.weight_start = (taps.first_y * layer->kernel_w + taps.first_x) * layer->out_c;
  return taps;
}

static int8_t depthwise_byte(const orbit_conv *layer, int32_t channel, int32_t sum) {
  const int32_t value = orbit_requantize(sum, layer->multiplier[channel], layer->shift[channel]);
  return (int8_t)orbit_clamp(value + layer->out_zero, layer->act_min, layer->act_max);
}

/* One output channel. */
static void depthwise_one(const orbit_conv *layer, const orbit_depthwise_taps *taps, const int8_t *input,
                          int32_t channel, int8_t *output) {
  const int8_t *weights = (const int8_t *)layer->weights;
  int32_t row = taps->in_start + channel / (layer->out_c / layer->in_c), weight_row = taps->weight_start + channel;
  int32_t sum = layer->bias[channel];
  for (int32_t ky = taps->first_y; ky < taps->last_y; ++ky) {
    int32_t in = row, weight = weight_row;
    for (int32_t kx = taps->first_x; kx < taps->last_x; ++kx) {
      sum += (input[in] - layer->in_zero) * weights[weight];
      in += taps->in_step;
      weight += layer->out_c;
    }
    row += taps->in_row;
    weight_row += layer->kernel_w * layer->out_c;
  }
  output[channel] = depthwise_byte(layer, channel, sum);
}

/* Four output channels of one filter each, from `channel` on. */
static void depthwise_four(const orbit_conv *layer, const orbit_depthwise_taps *taps, const int8_t *input,
                           int32_t channel, int8_t *output) {
  const int8_t *weights = (const int8_t *)layer->weights;
  const int32_t zero = layer->in_zero;
  int32_t row = taps->in_start + channel, weight_row = taps->weight_start + channel;
  int32_t a = layer->bias[channel], b = layer->bias[channel + 1];
  int32_t c = layer->bias[channel + 2], d = layer->bias[channel + 3];
  for (int32_t ky = taps->first_y; ky < taps->last_y; ++ky) {
    int32_t in = row, weight = weight_row;
    for (int32_t kx = taps->first_x; kx < taps->last_x; ++kx) {
      a += (input[in] - zero) * weights[weight];
      b += (input[in + 1] - zero) * weights[weight + 1];
      c += (input[in + 2] - zero) * weights[weight + 2];
      d += (input[in + 3] - zero) * weights[weight + 3];
      in += taps->in_step;
      weight += layer->out_c;
    }
    row += taps->in_row;
    weight_row += layer->kernel_w * layer->out_c;
  }
  output[channel] = depthwise_byte(layer, channel, a);
  output[channel + 1] = depthwise_byte(layer, channel + 1, b);
  output[channel + 2] = depthwise_byte(layer, channel + 2, c);
  output[channel + 3] = depthwise_byte(layer, channel + 3, d);
}

void orbit_depthwise_conv2d_s8(const orbit_conv *layer, const int8_t *input, int8_t *output) {
  for (int32_t y = 0; y < layer->out_h; ++y) {
    for (int32_t x = 0; x < layer->out_w; ++x) {
      const orbit_depthwise_taps taps = depthwise_taps(layer, y, x);
      int32_t channel = 0;
      if (layer->out_c == layer->in_c) {
        for (; channel + 4 <= layer->out_c; channel += 4) depthwise_four(layer, &taps, input, channel, output);
      }
      for (; channel < layer->out_c; ++channel) depthwise_one(layer, &taps, input, channel, output);
      output += layer->out_c;
    }
  }
}
