/* Eight sums of neighbouring output pixels, and how weights of one output channel are added to them.
 *
 * An entry is a weight and the steps from the channel of the entry before to its own; a step is a channel's row of
 * columns. Entries are (steps, weight), or short: two of them are (weight, weight, steps of both in 4 bits each, the
 * first below), and an odd last one is (steps, weight).
 */
#ifndef ORBIT_CONV_LANES_H_
#define ORBIT_CONV_LANES_H_

#include "conv_rows.h"

#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M' && __ARM_ARCH_ISA_THUMB == 2 && !defined(__ARM_BIG_ENDIAN)
#define ORBIT_CORTEX_M
#include "conv_cortex_m.h"
#else

#define ORBIT_LANE_BYTES 1 /* of a channel and column in a row */
typedef struct {
  int32_t sums[ORBIT_LANES];
} orbit_lanes;

static inline void orbit_fill_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  orbit_fill_bytes(layer, rows, line, row);
}

/* Sums of nothing. One by one: compilers make a call of a loop. */
static inline void orbit_lanes_start(orbit_lanes *lanes) {
  int32_t *const s = lanes->sums;
  s[0] = s[1] = s[2] = s[3] = s[4] = s[5] = s[6] = s[7] = 0;
}

static inline void orbit_lanes_flush(orbit_lanes *lanes) {
  (void)lanes; /* a core that keeps two sums in a register takes them apart here */
}

static inline void orbit_lanes_end(const orbit_lanes *lanes, int32_t *sums) {
  int32_t i;
  for (i = 0; i < ORBIT_LANES; ++i) sums[i] = lanes->sums[i];
}

/* One weight for the eight columns from x on. */
ORBIT_WITHIN void orbit_lanes_add(orbit_lanes *lanes, const int8_t *x, int32_t weight) {
  int32_t *const s = lanes->sums;
  s[0] += weight * x[0];
  s[1] += weight * x[1];
  s[2] += weight * x[2];
  s[3] += weight * x[3];
  s[4] += weight * x[4];
  s[5] += weight * x[5];
  s[6] += weight * x[6];
  s[7] += weight * x[7];
}

/* `count` entries; returns their end. */
static inline const int8_t *orbit_lanes_run(orbit_lanes *lanes, const int8_t *entries, int32_t count, const int8_t *x,
                                            int32_t step) {
  orbit_lanes sums = *lanes;
  for (; count > 0; --count, entries += 2) {
    x += (uint8_t)entries[0] * step;
    orbit_lanes_add(&sums, x, entries[1]);
  }
  *lanes = sums;
  return entries;
}

/* At each place of the kernel a count in one byte and that many entries; returns their end. */
static inline const int8_t *orbit_lanes_counted(orbit_lanes *lanes, const int8_t *entries, const orbit_rows *rows) {
  const int8_t **place;
  for (place = rows->place; place < rows->end; ++place) {
    entries = orbit_lanes_run(lanes, entries + 1, (uint8_t)entries[0], *place, rows->step);
  }
  return entries;
}

/* At each place of the kernel `count` short entries; returns their end. */
static inline const int8_t *orbit_lanes_short(orbit_lanes *lanes, const int8_t *entries, const orbit_rows *rows,
                                              int32_t count) {
  const int32_t step = rows->step;
  const int8_t **place;
  orbit_lanes sums = *lanes;
  int32_t left;
  for (place = rows->place; place < rows->end; ++place) {
    const int8_t *x = *place;
    for (left = count; left > 1; left -= 2, entries += 3) {
      const int32_t steps = (uint8_t)entries[2];
      x += (steps & 15) * step;
      orbit_lanes_add(&sums, x, entries[0]);
      x += (steps >> 4) * step;
      orbit_lanes_add(&sums, x, entries[1]);
    }
    if (left) {
      orbit_lanes_add(&sums, x + (uint8_t)entries[0] * step, entries[1]);
      entries += 2;
    }
  }
  *lanes = sums;
  return entries;
}

/* All weights of `channels` input channels at one place; returns their end. */
static inline const int8_t *orbit_lanes_all(orbit_lanes *lanes, const int8_t *weights, int32_t channels,
                                            const int8_t *x, int32_t step) {
  orbit_lanes sums = *lanes;
  for (; channels > 0; --channels, x += step) orbit_lanes_add(&sums, x, *weights++);
  *lanes = sums;
  return weights;
}

/* Three neighbouring weights: each column is read once for all of them. */
ORBIT_WITHIN void orbit_lanes_add_three(orbit_lanes *lanes, const int8_t *x, const int8_t *weights) {
  const int32_t w0 = weights[0], w1 = weights[1], w2 = weights[2];
  int32_t *const s = lanes->sums;
  int32_t column;
  s[0] += x[0] * w0;
  column = x[1];
  s[0] += column * w1;
  s[1] += column * w0;
  column = x[2];
  s[0] += column * w2;
  s[1] += column * w1;
  s[2] += column * w0;
  column = x[3];
  s[1] += column * w2;
  s[2] += column * w1;
  s[3] += column * w0;
  column = x[4];
  s[2] += column * w2;
  s[3] += column * w1;
  s[4] += column * w0;
  column = x[5];
  s[3] += column * w2;
  s[4] += column * w1;
  s[5] += column * w0;
  column = x[6];
  s[4] += column * w2;
  s[5] += column * w1;
  s[6] += column * w0;
  column = x[7];
  s[5] += column * w2;
  s[6] += column * w1;
  s[7] += column * w0;
  column = x[8];
  s[6] += column * w2;
  s[7] += column * w1;
  s[7] += x[9] * w2;
}

/* 3 x 3 weights whose columns are neighbours, of each of `count` input channels; returns their end. With `indexed` the
   steps to its channel stand before each channel's weights, else channels follow one another. */
static inline const int8_t *orbit_lanes_nines(orbit_lanes *lanes, const int8_t *weights, int32_t count, int indexed,
                                              const orbit_rows *rows, int32_t *offset) {
  orbit_lanes sums = *lanes;
  const int8_t *const first = rows->place[0], *const second = rows->place[3], *const third = rows->place[6];
  int32_t at = *offset;
  for (; count > 0; --count, weights += 9) {
    if (indexed) at += (uint8_t)*weights++ * rows->step;
    orbit_lanes_add_three(&sums, first + at, weights);
    orbit_lanes_add_three(&sums, second + at, weights + 3);
    orbit_lanes_add_three(&sums, third + at, weights + 6);
    if (!indexed) at += rows->step;
  }
  *offset = at;
  *lanes = sums;
  return weights;
}

#endif

#endif /* ORBIT_CONV_LANES_H_ */
