/* What the convolutions share: input rows turned so that neighbouring output pixels lie side by side, and the store.
 *
 * A convolution computes ORBIT_LANES output pixels of a row at a time. For it the scratch holds the `kernel_h` input
 * rows that an output row needs, each channel's columns one after the other and ordered so that what one place of the
 * kernel multiplies for neighbouring output pixels are neighbours, whatever the stride: a column x, counted from the
 * padding's first, stands at (x mod stride) * length + x / stride. Rows that the next output row needs again stay.
 *
 * What stands for a channel and column is the kernel's choice, made by its `orbit_row_fill`.
 */
#ifndef ORBIT_CONV_ROWS_H_
#define ORBIT_CONV_ROWS_H_

#include "orbit_kernels.h"

#define ORBIT_LANES 8

/* Below this many output pixels in a row, they are computed one by one from rows in the order of the input. */
#define ORBIT_NARROW 3

typedef struct {
  int32_t length;      /* columns of one remainder of the stride */
  int32_t columns;     /* of a row, all remainders */
  int32_t row_bytes;   /* of a row in the scratch */
  const void **row;    /* the input row of each kernel row, for the output row that was loaded last */
  int32_t *held;       /* which input row is in each place; counted from the padding's first */
  unsigned char *rows; /* kernel_h places */
} orbit_rows;

/* Writes one input row, or in_zero everywhere where `line` is NULL, as the kernel wants it. */
typedef void (*orbit_row_fill)(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row);

static inline int32_t orbit_min_of(int32_t a, int32_t b) {
  return a < b ? a : b;
}

static inline int orbit_is_narrow(const orbit_conv *layer) {
  return layer->out_w < ORBIT_NARROW;
}

/* The rows of a scratch. `channel_bytes`: of `channels` channels together, a column, rounded up to whole groups. */
static inline orbit_rows orbit_rows_of(const orbit_conv *layer, int32_t channels, int32_t channel_bytes,
                                       void *scratch) {
  orbit_rows rows;
  const int32_t reach = (layer->kernel_w - 1) * layer->dilation_w;
  const int32_t lanes = orbit_is_narrow(layer) ? layer->out_w
                                               : (layer->out_w + ORBIT_LANES - 1) / ORBIT_LANES * ORBIT_LANES;
  const int32_t groups = (layer->in_c + channels - 1) / channels;
  int32_t i;
  rows.length = lanes + reach / layer->stride_w;
  rows.columns = rows.length * orbit_min_of(layer->stride_w, reach + 1);
  rows.row_bytes = (groups * channel_bytes * rows.columns + 7) / 8 * 8;
  rows.row = (const void **)scratch;
  rows.held = (int32_t *)(void *)((unsigned char *)scratch + 8 * layer->kernel_h);
  rows.rows = (unsigned char *)scratch + 16 * layer->kernel_h;
  for (i = 0; i < layer->kernel_h; ++i) rows.held[i] = -1;
  return rows;
}

/* Makes `row` those of output row `y`; fills what is not there yet. */
static inline void orbit_rows_load(const orbit_conv *layer, const orbit_rows *rows, const int8_t *input, int32_t y,
                                   orbit_row_fill fill) {
  int32_t ky;
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    const int32_t wanted = y * layer->stride_h + ky * layer->dilation_h;
    /* next to each other, rows are kept; with a dilation none of the next output row's is here */
    const int32_t place = layer->dilation_h == 1 ? wanted % layer->kernel_h : ky;
    void *const row = rows->rows + place * rows->row_bytes;
    rows->row[ky] = row;
    if (rows->held[place] != wanted) {
      const int32_t in_y = wanted - layer->pad_top;
      const int inside = in_y >= 0 && in_y < layer->in_h;
      fill(layer, rows, inside ? input + (ptrdiff_t)in_y * layer->in_w * layer->in_c : NULL, row);
      rows->held[place] = wanted;
    }
  }
}

/* The pixel of an input row at a place of the scratch's row; NULL in the padding. */
static inline const int8_t *orbit_column(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line,
                                         int32_t place) {
  const int32_t remainder = place / rows->length;
  const int32_t x = (place - remainder * rows->length) * layer->stride_w + remainder - layer->pad_left;
  return line != NULL && x >= 0 && x < layer->in_w ? line + (ptrdiff_t)x * layer->in_c : NULL;
}

/* Where the first output pixel's input stands, for a column of the kernel. */
static inline int32_t orbit_place(const orbit_conv *layer, const orbit_rows *rows, int32_t kx) {
  const int32_t x = kx * layer->dilation_w;
  return x % layer->stride_w * rows->length + x / layer->stride_w;
}

/* Each channel's columns side by side: int8 [channel][column]. */
static inline void orbit_fill_bytes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  int32_t place, c;
  for (place = 0; place < rows->columns; ++place) {
    const int8_t *const pixel = orbit_column(layer, rows, line, place);
    int8_t *out = (int8_t *)row + place;
    if (pixel != NULL) {
      for (c = 0; c < layer->in_c; ++c, out += rows->columns) *out = pixel[c];
    } else {
      for (c = 0; c < layer->in_c; ++c, out += rows->columns) *out = (int8_t)layer->in_zero;
    }
  }
}

/* As the input has it: int8 [column][channel]. */
static inline void orbit_fill_pixels(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  int32_t place;
  int8_t *out = (int8_t *)row;
  for (place = 0; place < rows->columns; ++place, out += layer->in_c) {
    const int8_t *const pixel = orbit_column(layer, rows, line, place);
    if (pixel != NULL) {
      memcpy(out, pixel, (size_t)layer->in_c);
    } else {
      memset(out, layer->in_zero, (size_t)layer->in_c);
    }
  }
}

/* Requantizes the sums of `count` pixels and writes them to one channel of the output, from `out` on. */
static inline void orbit_conv_store(const orbit_conv *layer, int32_t channel, const int32_t *sums, int32_t count,
                               int8_t *out) {
  const int32_t bias = layer->bias[channel], multiplier = layer->multiplier[channel];
  const int32_t shift = layer->shift[channel];
  int32_t i;
#if defined(__ARM_FEATURE_DSP)
  /* SMMULR on twice the sum rounds as orbit_multiply_high; without the bias a sum is below 2^29, which the packer checks.
     The output's zero point is added before the shift: that is exact. */
  const int32_t half = (int32_t)1 << 29;
  if (shift <= -1 && shift >= -16 && bias > -half && bias < half && layer->act_min == -128 && layer->act_max == 127) {
    const int32_t right = -shift;
    const int32_t nudge = (layer->out_zero << right) + (1 << (right - 1));
    for (i = 0; i < count; ++i, out += layer->out_c) {
      int32_t high;
      __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"((sums[i] + bias) << 1), "r"(multiplier));
      high = (high + (high >> 31) + nudge) >> right;
      __asm__("ssat %0, #8, %1" : "=r"(high) : "r"(high));
      *out = (int8_t)high;
    }
    return;
  }
#endif
  for (i = 0; i < count; ++i, out += layer->out_c) {
    const int32_t value = orbit_requantize(sums[i] + bias, multiplier, shift) + layer->out_zero;
    *out = (int8_t)orbit_clamp(value, layer->act_min, layer->act_max);
  }
}

/* The sums of some pixels of one output channel, from x on; returns the end of the channel's weights. */
typedef const int8_t *(*orbit_sum)(const orbit_conv *layer, const orbit_rows *rows, const int8_t *weights, int32_t x,
                                   int32_t *sums);

/* The whole convolution. `sum` gives `pixels` at once, ORBIT_LANES at most; the weights of the first output channel
   begin `header` bytes behind `layer->weights`. */
static inline void orbit_conv_run(const orbit_conv *layer, const orbit_rows *rows, const int8_t *input, int8_t *output,
                                  orbit_row_fill fill, orbit_sum sum, int32_t pixels, int32_t header) {
  int32_t sums[ORBIT_LANES];
  int32_t y, x, channel;
  for (y = 0; y < layer->out_h; ++y) {
    const int8_t *weights = (const int8_t *)layer->weights + header;
    orbit_rows_load(layer, rows, input, y, fill);
    for (channel = 0; channel < layer->out_c; ++channel) {
      int8_t *out = output + (ptrdiff_t)y * layer->out_w * layer->out_c + channel;
      const int8_t *end = weights;
      for (x = 0; x < layer->out_w; x += pixels, out += (ptrdiff_t)pixels * layer->out_c) {
        end = sum(layer, rows, weights, x, sums);
        orbit_conv_store(layer, channel, sums, orbit_min_of(pixels, layer->out_w - x), out);
      }
      weights = end;
    }
  }
}

/* sums[0..7] += weight * x[0..7] */
static inline void orbit_add_lanes(int32_t *sums, const int8_t *x, int32_t weight) {
  sums[0] += weight * x[0];
  sums[1] += weight * x[1];
  sums[2] += weight * x[2];
  sums[3] += weight * x[3];
  sums[4] += weight * x[4];
  sums[5] += weight * x[5];
  sums[6] += weight * x[6];
  sums[7] += weight * x[7];
}

#endif /* ORBIT_CONV_ROWS_H_ */
