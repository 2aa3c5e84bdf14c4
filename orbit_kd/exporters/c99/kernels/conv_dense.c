/* Convolution with all weights.
 *
 * Weights: 4 bytes of header (after how many input channels sums are flushed, 0 for never; 0; 0; 0), then [output channel]
 * [input channel][kernel_h][kernel_w].
 */
#include "conv_channels.h"

/* Eight pixels from x on. */
static const int8_t *dense_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *weights, int32_t x,
                                 int32_t *sums) {
  const int32_t flush = ((const int8_t *)layer->weights)[0];
  const int three = orbit_is_three(layer);
  const int32_t step = rows->columns * ORBIT_LANE_BYTES;
  int32_t c, offset = x * ORBIT_LANE_BYTES, left = flush;
  orbit_lanes lanes;
  orbit_lanes_start(&lanes);
  for (c = 0; c < layer->in_c; ++c, offset += step) {
    weights = orbit_channel_lanes(layer, rows, weights, offset, three, &lanes);
    if (--left == 0) {
      orbit_lanes_flush(&lanes);
      left = flush;
    }
  }
  orbit_lanes_end(&lanes, sums);
  return weights;
}

/* The pixel x alone. */
static const int8_t *dense_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *weights, int32_t x,
                                 int32_t *sums) {
  int32_t c, total = 0;
  for (c = 0; c < layer->in_c; ++c) total += orbit_channel_pixel(layer, rows, &weights, c, x);
  *sums = total;
  return weights;
}

void orbit_conv2d_dense_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch) {
  if (orbit_is_narrow(layer)) {
    const orbit_rows rows = orbit_rows_of(layer, 1, 1, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_pixels, dense_pixel, 1, 4);
  } else {
    const orbit_rows rows = orbit_rows_of(layer, 1, ORBIT_LANE_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_lanes, dense_lanes, ORBIT_LANES, 4);
  }
}
