/* Convolution whose output channels each use some input channels only, the same at all places of the kernel.
 *
 * Tap-shared N:M is the case of it where N of every M input channels are used. Weights: 4 bytes of header (after how
 * many entries sums are flushed, 0 for never; 0; 0; 0); then for each output channel the count of its entries in 2
 * bytes, lowest first, and the entries (channels from the entry before, or from channel 0; kernel_h * kernel_w weights).
 */
#include "conv_channels.h"

static int32_t shared_count(const int8_t *entries) {
  return (uint8_t)entries[0] + 256 * (uint8_t)entries[1];
}

ORBIT_APART const int8_t *shared_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries,
                                  int32_t *sums) {
  const int32_t flush = ((const int8_t *)layer->weights)[0];
  return orbit_channels_lanes(layer, rows, entries + 2, shared_count(entries), flush, 1, sums);
}

ORBIT_APART const int8_t *shared_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries,
                                  int32_t *sums) {
  return orbit_channels_pixel(layer, rows, entries + 2, shared_count(entries), 1, sums);
}

void orbit_conv2d_shared_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch) {
  if (orbit_is_narrow(layer)) {
    const orbit_rows rows = orbit_rows_of(layer, layer->in_c, layer->in_c, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_pixels, shared_pixel, 1, 4);
  } else {
    const orbit_rows rows = orbit_rows_of(layer, layer->in_c * ORBIT_LANE_BYTES, ORBIT_LANE_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_lanes, shared_lanes, ORBIT_LANES, 4);
  }
}
