/* All weights of one input channel, (kernel_h, kernel_w), at once: what dense and tap-shared kernels are made of. */
#ifndef ORBIT_CONV_CHANNELS_H_
#define ORBIT_CONV_CHANNELS_H_

#include "conv_lanes.h"

static inline int orbit_is_three(const orbit_conv *layer) {
  return layer->kernel_w == 3 && layer->stride_w == 1 && layer->dilation_w == 1;
}

/* Adds a channel to eight pixels; `offset` is the channel's and the first pixel's, from the start of a row. Returns the
   end of the weights. */
static inline const int8_t *orbit_channel_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *weights,
                                                int32_t offset, int three, orbit_lanes *lanes) {
  int32_t ky, kx;
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    const int8_t *const at = (const int8_t *)rows->row[ky] + offset;
    if (three) {
      orbit_lanes_add_three(lanes, at, weights);
      weights += 3;
    } else {
      for (kx = 0; kx < layer->kernel_w; ++kx) {
        orbit_lanes_add(lanes, at + orbit_place(layer, rows, kx) * ORBIT_LANE_BYTES, *weights++);
      }
    }
  }
  return weights;
}

/* What a channel adds to the pixel x alone; moves the weights on. */
static inline int32_t orbit_channel_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t **weights,
                                          int32_t channel, int32_t x) {
  int32_t ky, kx, total = 0;
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    const int8_t *const row = (const int8_t *)rows->row[ky] + channel;
    for (kx = 0; kx < layer->kernel_w; ++kx) {
      total += *(*weights)++ * row[(orbit_place(layer, rows, kx) + x) * layer->in_c];
    }
  }
  return total;
}

#endif /* ORBIT_CONV_CHANNELS_H_ */
