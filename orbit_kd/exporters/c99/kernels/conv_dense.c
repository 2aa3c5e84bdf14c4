/* Convolution with all weights.
 *
 * Weights: 4 bytes of header (after how many input channels sums are flushed, 0 for never; 0; 0; 0), then [output
 * channel][input channel][kernel_h][kernel_w].
 */
#include "conv_channels.h"

ORBIT_APART const int8_t *dense_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *weights,
                                 int32_t *sums) {
  const int32_t flush = ((const int8_t *)layer->weights)[0];
  return orbit_channels_lanes(layer, rows, weights, layer->in_c, flush, 0, sums);
}

ORBIT_APART const int8_t *dense_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *weights,
                                 int32_t *sums) {
  return orbit_channels_pixel(layer, rows, weights, layer->in_c, 0, sums);
}

void orbit_conv2d_dense_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch) {
  if (orbit_is_narrow(layer)) {
    const orbit_rows rows = orbit_rows_of(layer, layer->in_c, layer->in_c, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_pixels, dense_pixel, 1, 4);
  } else {
    const orbit_rows rows = orbit_rows_of(layer, layer->in_c * ORBIT_LANE_BYTES, ORBIT_LANE_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_lanes, dense_lanes, ORBIT_LANES, 4);
  }
}
