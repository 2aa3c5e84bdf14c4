/* Bilinear resizing, in 1024ths of a pixel. */
#include "orbit_kernels.h"

/* The pixels before and after a position, and how far it is from the first. A position before the image is left of its
 * first pixel, which is then both. */
static void orbit_bilinear_place(int32_t position, int32_t size, int32_t *before, int32_t *after, int32_t *part) {
  const int32_t down = position / 1024, up = (position + 1023) / 1024;
  *before = down < 0 ? 0 : down;
  *after = up < size ? up : size - 1;
  *part = position - 1024 * *before;
}

void orbit_resize_bilinear_s8(const orbit_resize_bilinear *layer, const int8_t *input, int8_t *output) {
  const int32_t channels = layer->channels;
  for (int32_t y = 0; y < layer->out_h; ++y) {
    int32_t y0, y1, down, x0, x1, right;
    orbit_bilinear_place(y * layer->scale_h + layer->start_h, layer->in_h, &y0, &y1, &down);
    for (int32_t x = 0; x < layer->out_w; ++x) {
      orbit_bilinear_place(x * layer->scale_w + layer->start_w, layer->in_w, &x0, &x1, &right);
      const int8_t *top_left = input + (y0 * layer->in_w + x0) * channels;
      const int8_t *top_right = input + (y0 * layer->in_w + x1) * channels;
      const int8_t *low_left = input + (y1 * layer->in_w + x0) * channels;
      const int8_t *low_right = input + (y1 * layer->in_w + x1) * channels;
      for (int32_t i = 0; i < channels; ++i) {
        const int64_t top = (int64_t)top_left[i] * (1024 - right) + (int64_t)top_right[i] * right;
        const int64_t low = (int64_t)low_left[i] * (1024 - right) + (int64_t)low_right[i] * right;
        const int64_t sum = top * (1024 - down) + low * down;
        *output++ = (int8_t)((sum > 0 ? sum + (1 << 19) : sum - (1 << 19)) / (1 << 20));
      }
    }
  }
}
