/* Resizing to the nearest pixel. */
#include "orbit_kernels.h"

void orbit_resize_nearest_s8(const orbit_resize_nearest *layer, const int8_t *input, int8_t *output) {
  for (int32_t y = 0; y < layer->out_h; ++y) {
    const int8_t *row = input + layer->rows[y] * layer->in_w * layer->channels;
    for (int32_t x = 0; x < layer->out_w; ++x) {
      memcpy(output, row + layer->columns[x] * layer->channels, (size_t)layer->channels);
      output += layer->channels;
    }
  }
}
