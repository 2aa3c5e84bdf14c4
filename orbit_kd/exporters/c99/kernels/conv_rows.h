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

/* What is called for a row or for eight pixels keeps its own registers: within another function they would not do. What
   adds to eight sums is to be part of the loop that holds these in registers. */
#if defined(__GNUC__)
#define ORBIT_APART static __attribute__((noinline, unused))
#define ORBIT_WITHIN static inline __attribute__((always_inline))
#else
#define ORBIT_APART static inline
#define ORBIT_WITHIN static inline
#endif

/* Below this many output pixels in a row, they are computed one by one from rows in the order of the input. */
#define ORBIT_NARROW 3

typedef struct {
  int32_t length;       /* columns of one remainder of the stride */
  int32_t columns;      /* of a row, all remainders */
  int32_t column_bytes; /* from a column to the next */
  int32_t step;         /* bytes from a channel's columns, or a pair's, to the next one's */
  int32_t row_bytes;    /* of a row in the scratch */
  const int8_t **row;   /* the input row of each kernel row, for the output row that was loaded last */
  const int8_t **place; /* of each place of the kernel: where the columns for the first output pixel begin */
  const int8_t **end;   /* of `place` */
  int32_t *held;        /* which input row is in each place; counted from the padding's first */
  int8_t *rows;         /* kernel_h rows */
} orbit_rows;

/* Writes one input row, or in_zero everywhere where `line` is NULL, as the kernel wants it. */
typedef void (*orbit_row_fill)(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row);

static inline int32_t orbit_min_of(int32_t a, int32_t b) {
  return a < b ? a : b;
}

static inline int orbit_is_narrow(const orbit_conv *layer) {
  return layer->out_w < ORBIT_NARROW;
}

/* The rows of a scratch. `bytes`: of all channels of a column. */
static inline orbit_rows orbit_rows_of(const orbit_conv *layer, int32_t bytes, int32_t column_bytes, void *scratch) {
  orbit_rows rows;
  const int32_t reach = (layer->kernel_w - 1) * layer->dilation_w;
  const int32_t lanes = orbit_is_narrow(layer) ? layer->out_w
                                               : (layer->out_w + ORBIT_LANES - 1) / ORBIT_LANES * ORBIT_LANES;
  int8_t *at = (int8_t *)scratch;
  int32_t i;
  rows.length = lanes + reach / layer->stride_w;
  rows.columns = rows.length * orbit_min_of(layer->stride_w, reach + 1);
  rows.column_bytes = column_bytes;
  rows.step = column_bytes * rows.columns;
  rows.row_bytes = (bytes * rows.columns + 7) / 8 * 8;
  /* pointers have 8 bytes at most */
  rows.row = (const int8_t **)(void *)at;
  at += 8 * layer->kernel_h;
  rows.place = (const int8_t **)(void *)at;
  rows.end = rows.place + layer->kernel_h * layer->kernel_w;
  at += 16 * layer->kernel_h * layer->kernel_w; /* conv_vector.c has four pointers of 4 bytes in each */
  rows.held = (int32_t *)(void *)at;
  rows.rows = at + 8 * layer->kernel_h;
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
    int8_t *const row = rows->rows + place * rows->row_bytes;
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

/* Makes `place` those of output pixel `x`. */
static inline void orbit_rows_at(const orbit_conv *layer, const orbit_rows *rows, int32_t x) {
  const int8_t **place = rows->place;
  int32_t ky, kx;
  for (kx = 0; kx < layer->kernel_w; ++kx) {
    const int32_t first = kx * layer->dilation_w;
    const int32_t column = first % layer->stride_w * rows->length + first / layer->stride_w + x;
    for (ky = 0; ky < layer->kernel_h; ++ky) {
      place[ky * layer->kernel_w + kx] = rows->row[ky] + column * rows->column_bytes;
    }
  }
}

/* Each channel's columns side by side: int8 [channel][column]. */
ORBIT_APART void orbit_fill_bytes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line,
                                                void *row) {
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

/* orbit_multiply_high of sum + bias, in fewer steps: times multiplier / 2^31, rounded to nearest, halves up. Both are
   below 2^29. */
static inline int32_t orbit_conv_high(int32_t sum, int32_t bias, int32_t multiplier) {
#if defined(__ARM_FEATURE_DSP)
  int32_t high;
  __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"(sum * 2 + bias * 2), "r"(multiplier));
  return high;
#else
  const int64_t product = (int64_t)(sum + bias) * multiplier + ((int64_t)1 << 30);
  return (int32_t)(product < 0 ? ~(~product >> 31) : product >> 31);
#endif
}

/* How the sums of one output channel become int8, where the shift is from -16 to -1: as orbit_requantize. Adding the
   output's zero point before the shift is exact. */
typedef struct {
  int32_t bias, multiplier, nudge, right, low, most;
} orbit_conv_scale;

static inline int8_t orbit_conv_byte(const orbit_conv_scale *scale, int32_t sum) {
  const int32_t high = orbit_conv_high(sum, scale->bias, scale->multiplier);
  const int32_t value = orbit_shift_right(high + (high < 0 ? -1 : 0) + scale->nudge, scale->right);
  return (int8_t)orbit_clamp(value, scale->low, scale->most);
}

/* The same where all of int8 is allowed. */
static inline int8_t orbit_conv_whole_byte(const orbit_conv_scale *scale, int32_t sum) {
  const int32_t high = orbit_conv_high(sum, scale->bias, scale->multiplier);
  const int32_t value = orbit_shift_right(high + (high < 0 ? -1 : 0) + scale->nudge, scale->right);
#if defined(__ARM_FEATURE_SAT)
  int32_t byte;
  __asm__("ssat %0, #8, %1" : "=r"(byte) : "r"(value));
  return (int8_t)byte;
#else
  return (int8_t)orbit_clamp(value, -128, 127);
#endif
}

/* Requantizes the sums of `count` pixels and writes them to one channel of the output, from `out` on. Without the bias a
   sum is below 2^29, which the packer sees to. */
ORBIT_APART void orbit_conv_store(const orbit_conv *layer, int32_t channel, const int32_t *sums, int32_t count,
                                    int8_t *out) {
  const int32_t shift = layer->shift[channel], half = (int32_t)1 << 29, step = layer->out_c;
  const int32_t *const end = sums + count;
  orbit_conv_scale scale;
  scale.bias = layer->bias[channel];
  scale.multiplier = layer->multiplier[channel];
  scale.low = layer->act_min;
  scale.most = layer->act_max;
  if (shift > -1 || shift < -16 || scale.bias <= -half || scale.bias >= half) {
    for (; sums < end; ++sums, out += step) {
      const int32_t value = orbit_requantize(*sums + scale.bias, scale.multiplier, shift) + layer->out_zero;
      *out = (int8_t)orbit_clamp(value, scale.low, scale.most);
    }
    return;
  }
  scale.right = -shift;
  scale.nudge = layer->out_zero * ((int32_t)1 << scale.right) + ((int32_t)1 << (scale.right - 1));
  if (scale.low > -128 || scale.most < 127) {
    for (; sums < end; ++sums, out += step) *out = orbit_conv_byte(&scale, *sums);
  } else if (count == ORBIT_LANES) {
    *out = orbit_conv_whole_byte(&scale, sums[0]);
    *(out += step) = orbit_conv_whole_byte(&scale, sums[1]);
    *(out += step) = orbit_conv_whole_byte(&scale, sums[2]);
    *(out += step) = orbit_conv_whole_byte(&scale, sums[3]);
    *(out += step) = orbit_conv_whole_byte(&scale, sums[4]);
    *(out += step) = orbit_conv_whole_byte(&scale, sums[5]);
    *(out += step) = orbit_conv_whole_byte(&scale, sums[6]);
    *(out + step) = orbit_conv_whole_byte(&scale, sums[7]);
  } else {
    for (; sums < end; ++sums, out += step) *out = orbit_conv_whole_byte(&scale, *sums);
  }
}

/* The sums of one output channel for the pixels that `place` is for; returns the end of the channel's weights. */
typedef const int8_t *(*orbit_sum)(const orbit_conv *layer, const orbit_rows *rows, const int8_t *weights,
                                   int32_t *sums);

/* The whole convolution. `sum` gives `pixels` at once, ORBIT_LANES at most; the weights of the first output channel
   begin `header` bytes behind `layer->weights`. */
static inline void orbit_conv_run(const orbit_conv *layer, const orbit_rows *rows, const int8_t *input, int8_t *output,
                                  orbit_row_fill fill, orbit_sum sum, int32_t pixels, int32_t header) {
  int32_t sums[ORBIT_LANES] = {0};
  int32_t y, x, channel;
  for (y = 0; y < layer->out_h; ++y) {
    orbit_rows_load(layer, rows, input, y, fill);
    for (x = 0; x < layer->out_w; x += pixels) {
      const int32_t count = orbit_min_of(pixels, layer->out_w - x);
      const int8_t *weights = (const int8_t *)layer->weights + header;
      orbit_rows_at(layer, rows, x);
      for (channel = 0; channel < layer->out_c; ++channel) {
        weights = sum(layer, rows, weights, sums);
        orbit_conv_store(layer, channel, sums, count, output + channel);
      }
      output += (ptrdiff_t)count * layer->out_c;
    }
  }
}

#endif /* ORBIT_CONV_ROWS_H_ */
