/* All weights of one input channel, (kernel_h, kernel_w), one after the other: dense and tap-shared kernels. */
#ifndef ORBIT_CONV_CHANNELS_H_
#define ORBIT_CONV_CHANNELS_H_

#include "conv_lanes.h"

/* Eight pixels of an output channel from `count` input channels, flushed after every `flush` of them where that is not
   0. With `indexed` the steps to its channel stand before each channel's weights. Returns the end of the weights. */
static inline const int8_t *orbit_channels_lanes(const orbit_conv *layer, const orbit_rows *rows,
                                                 const int8_t *weights, int32_t count, int32_t flush, int indexed,
                                                 int32_t *sums) {
  const int32_t step = rows->step, places = layer->kernel_h * layer->kernel_w;
  const int nines = layer->kernel_h == 3 && layer->kernel_w == 3 && layer->stride_w == 1 && layer->dilation_w == 1;
  int32_t i, offset = 0;
  orbit_lanes lanes;
  orbit_lanes_start(&lanes);
  while (count > 0) {
    int32_t together = flush ? orbit_min_of(flush, count) : count;
    count -= together;
    if (nines) {
      weights = orbit_lanes_nines(&lanes, weights, together, indexed, rows, &offset);
    } else if (places == 1 && !indexed) {
      weights = orbit_lanes_all(&lanes, weights, together, rows->place[0] + offset, step);
      offset += together * step;
    } else if (places == 1 && !flush) {
      weights = orbit_lanes_run(&lanes, weights, together, rows->place[0], step);
    } else {
      for (; together > 0; --together) {
        if (indexed) offset += (uint8_t)*weights++ * step;
        for (i = 0; i < places; ++i) orbit_lanes_add(&lanes, rows->place[i] + offset, *weights++);
        if (!indexed) offset += step;
      }
    }
    if (flush) orbit_lanes_flush(&lanes);
  }
  orbit_lanes_end(&lanes, sums);
  return weights;
}

/* The same for one pixel. */
static inline const int8_t *orbit_channels_pixel(const orbit_conv *layer, const orbit_rows *rows,
                                                 const int8_t *weights, int32_t count, int indexed, int32_t *sums) {
  const int32_t places = layer->kernel_h * layer->kernel_w;
  int32_t i, channel = 0, total = 0;
  for (; count > 0; --count) {
    if (indexed) channel += (uint8_t)*weights++;
    for (i = 0; i < places; ++i) total += *weights++ * rows->place[i][channel];
    if (!indexed) ++channel;
  }
  *sums = total;
  return weights;
}

#endif /* ORBIT_CONV_CHANNELS_H_ */
