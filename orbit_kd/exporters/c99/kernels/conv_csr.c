/* Convolution with any zeros: of each output channel and place of the kernel, the weights that are not zero.
 *
 * Weights: 4 bytes of header (bytes of a count: 1 or 2; whether sums are flushed after each place of the kernel; 0; 0);
 * then for each output channel and place of the kernel the count, lowest byte first, and that many entries (channels
 * from the entry before, or from channel 0; weight).
 */
#include "conv_lanes.h"

/* A count of entries; moves on. */
static int32_t csr_count(const int8_t **entries, int32_t bytes) {
  int32_t count = (uint8_t)(*entries)[0];
  if (bytes == 2) count += (uint8_t)(*entries)[1] * 256;
  *entries += bytes;
  return count;
}

ORBIT_APART const int8_t *csr_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries,
                               int32_t *sums) {
  const int8_t *const header = (const int8_t *)layer->weights;
  const int32_t places = layer->kernel_h * layer->kernel_w;
  int32_t i;
  orbit_lanes lanes;
  orbit_lanes_start(&lanes);
  if (header[0] == 1 && !header[1]) {
    entries = orbit_lanes_counted(&lanes, entries, rows);
  } else {
    for (i = 0; i < places; ++i) {
      const int32_t count = csr_count(&entries, header[0]);
      entries = orbit_lanes_run(&lanes, entries, count, rows->place[i], rows->step);
      if (header[1]) orbit_lanes_flush(&lanes);
    }
  }
  orbit_lanes_end(&lanes, sums);
  return entries;
}

ORBIT_APART const int8_t *csr_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries,
                               int32_t *sums) {
  const int8_t *const header = (const int8_t *)layer->weights;
  int32_t i, total = 0;
  for (i = 0; i < layer->kernel_h * layer->kernel_w; ++i) {
    const int8_t *x = rows->place[i];
    int32_t count = csr_count(&entries, header[0]);
    for (; count > 0; --count, entries += 2) {
      x += (uint8_t)entries[0];
      total += entries[1] * *x;
    }
  }
  *sums = total;
  return entries;
}

void orbit_conv2d_csr_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch) {
  if (orbit_is_narrow(layer)) {
    const orbit_rows rows = orbit_rows_of(layer, layer->in_c, layer->in_c, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_pixels, csr_pixel, 1, 4);
  } else {
    const orbit_rows rows = orbit_rows_of(layer, layer->in_c * ORBIT_LANE_BYTES, ORBIT_LANE_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_lanes, csr_lanes, ORBIT_LANES, 4);
  }
}
