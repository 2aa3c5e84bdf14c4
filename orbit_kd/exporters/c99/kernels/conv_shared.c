/* Convolution whose output channels each use some input channels only, the same at all places of the kernel.
 *
 * Tap-shared N:M is the case of it where N of every M input channels are used. Weights: 4 bytes of header (after how
 * many entries sums are flushed, 0 for never; 0; 0; 0); then for each output channel the count of its entries in 2 bytes, lowest
 * first, and the entries (channels from the entry before, or from channel 0; kernel_h * kernel_w weights).
 */
#include "conv_channels.h"

/* The count of a channel's entries; moves on. */
static int32_t shared_count(const int8_t **entries) {
  const int32_t count = (uint8_t)(*entries)[0] + 256 * (uint8_t)(*entries)[1];
  *entries += 2;
  return count;
}

/* Eight pixels from x on. */
static const int8_t *shared_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries, int32_t x,
                                  int32_t *sums) {
  const int32_t flush = ((const int8_t *)layer->weights)[0];
  const int three = orbit_is_three(layer);
  const int32_t step = rows->columns * ORBIT_LANE_BYTES;
  const int32_t count = shared_count(&entries);
  int32_t i, offset = x * ORBIT_LANE_BYTES, left = flush;
  orbit_lanes lanes;
  orbit_lanes_start(&lanes);
  for (i = 0; i < count; ++i) {
    offset += (uint8_t)*entries++ * step;
    entries = orbit_channel_lanes(layer, rows, entries, offset, three, &lanes);
    if (--left == 0) {
      orbit_lanes_flush(&lanes);
      left = flush;
    }
  }
  orbit_lanes_end(&lanes, sums);
  return entries;
}

/* The pixel x alone. */
static const int8_t *shared_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries, int32_t x,
                                  int32_t *sums) {
  int32_t count = shared_count(&entries), channel = 0, total = 0;
  for (; count > 0; --count) {
    channel += (uint8_t)*entries++;
    total += orbit_channel_pixel(layer, rows, &entries, channel, x);
  }
  *sums = total;
  return entries;
}

void orbit_conv2d_shared_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch) {
  if (orbit_is_narrow(layer)) {
    const orbit_rows rows = orbit_rows_of(layer, 1, 1, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_pixels, shared_pixel, 1, 4);
  } else {
    const orbit_rows rows = orbit_rows_of(layer, 1, ORBIT_LANE_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_lanes, shared_lanes, ORBIT_LANES, 4);
  }
}
