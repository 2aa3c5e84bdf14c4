/* Eight sums of neighbouring output pixels, and how single weights are added to them: for any sparse pattern.
 *
 * Where the core multiplies 32 x 32 + 64 bits at once, two pixels four apart share a word, and two sums share 64 bits:
 * (a + b * 2^23) * w = a * w + b * w * 2^23. The lower sum must stay within +-2^22 until `orbit_lanes_flush`, which the
 * packer arranges.
 */
#ifndef ORBIT_CONV_LANES_H_
#define ORBIT_CONV_LANES_H_

#include "conv_rows.h"

#if defined(__ARM_FEATURE_DSP)

#define ORBIT_LANE_BYTES 4 /* of a channel and column in a row */
typedef struct {
  int32_t sums[ORBIT_LANES];
  int64_t pairs[ORBIT_LANES / 2]; /* of the lanes i and i + 4 */
} orbit_lanes;

/* int32 [channel][column]: the column, and the one four columns on */
static inline void orbit_fill_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  int32_t place, c;
  for (place = 0; place < rows->columns; ++place) {
    const int8_t *const pixel = orbit_column(layer, rows, line, place);
    const int8_t *const other = orbit_column(layer, rows, line, orbit_min_of(place + 4, rows->columns - 1));
    int32_t *out = (int32_t *)row + place;
    for (c = 0; c < layer->in_c; ++c, out += rows->columns) {
      *out = (pixel != NULL ? pixel[c] : layer->in_zero) + (other != NULL ? other[c] : layer->in_zero) * (1 << 23);
    }
  }
}

static inline void orbit_lanes_start(orbit_lanes *lanes) {
  memset(lanes, 0, sizeof *lanes);
}

static inline void orbit_lanes_flush(orbit_lanes *lanes) {
  int32_t i;
  for (i = 0; i < ORBIT_LANES / 2; ++i) {
    const int32_t low = (int32_t)((uint32_t)lanes->pairs[i] << 9) >> 9;
    lanes->sums[i] += low;
    lanes->sums[i + 4] += (int32_t)((lanes->pairs[i] - low) >> 23);
    lanes->pairs[i] = 0;
  }
}

static inline void orbit_lanes_end(orbit_lanes *lanes, int32_t *sums) {
  orbit_lanes_flush(lanes);
  memcpy(sums, lanes->sums, sizeof lanes->sums);
}

#define ORBIT_PAIRS_OF(pairs) "+r"((pairs)[0]), "+r"((pairs)[1]), "+r"((pairs)[2]), "+r"((pairs)[3])
#define ORBIT_ADD_PAIRS         \
  "ldrd %[t], %[u], [%[x]]\n\t" \
  "smlal %Q0, %R0, %[t], %[w]\n\t" \
  "smlal %Q1, %R1, %[u], %[w]\n\t" \
  "ldrd %[t], %[u], [%[x], #8]\n\t" \
  "smlal %Q2, %R2, %[t], %[w]\n\t" \
  "smlal %Q3, %R3, %[u], %[w]\n\t"

/* One weight for the eight columns from x on. */
static inline void orbit_lanes_add(orbit_lanes *lanes, const void *x, int32_t weight) {
  int32_t t, u;
  __asm__ volatile(ORBIT_ADD_PAIRS
                   : ORBIT_PAIRS_OF(lanes->pairs), [t] "=&r"(t), [u] "=&r"(u)
                   : [x] "r"(x), [w] "r"(weight)
                   : "memory");
}

/* Three weights, the first for the eight columns from x on, each next one column on: a column is read once for all. */
static inline void orbit_lanes_add_three(orbit_lanes *lanes, const void *x, const int8_t *weights) {
  const int32_t w0 = weights[0], w1 = weights[1], w2 = weights[2];
  int32_t t;
  __asm__ volatile(
      "ldr %[t], [%[x]]\n\t"
      "smlal %Q0, %R0, %[t], %[w0]\n\t"
      "ldr %[t], [%[x], #4]\n\t"
      "smlal %Q0, %R0, %[t], %[w1]\n\t"
      "smlal %Q1, %R1, %[t], %[w0]\n\t"
      "ldr %[t], [%[x], #8]\n\t"
      "smlal %Q0, %R0, %[t], %[w2]\n\t"
      "smlal %Q1, %R1, %[t], %[w1]\n\t"
      "smlal %Q2, %R2, %[t], %[w0]\n\t"
      "ldr %[t], [%[x], #12]\n\t"
      "smlal %Q1, %R1, %[t], %[w2]\n\t"
      "smlal %Q2, %R2, %[t], %[w1]\n\t"
      "smlal %Q3, %R3, %[t], %[w0]\n\t"
      "ldr %[t], [%[x], #16]\n\t"
      "smlal %Q2, %R2, %[t], %[w2]\n\t"
      "smlal %Q3, %R3, %[t], %[w1]\n\t"
      "ldr %[t], [%[x], #20]\n\t"
      "smlal %Q3, %R3, %[t], %[w2]"
      : ORBIT_PAIRS_OF(lanes->pairs), [t] "=&r"(t)
      : [x] "r"(x), [w0] "r"(w0), [w1] "r"(w1), [w2] "r"(w2)
      : "memory");
}

/* `count` entries (weight, steps to its channel) for the eight columns from x on; returns their end. A step is `step`
   bytes, below 2^15. */
static inline const int8_t *orbit_lanes_run(orbit_lanes *lanes, const int8_t *entries, int32_t count, const void *x,
                                            int32_t step) {
  int32_t t, u, w, loop = step | (int32_t)((uint32_t)(count / 2 - 1) << 16);
  if (count >= 2) {
    __asm__ volatile(
        "1:\n\t"
        "ldrsb %[w], [%[e]], #4\n\t"
        "ldrb %[t], [%[e], #-3]\n\t"
        "smlabb %[x], %[t], %[loop], %[x]\n\t" ORBIT_ADD_PAIRS
        "ldrsb %[w], [%[e], #-2]\n\t"
        "ldrb %[t], [%[e], #-1]\n\t"
        "smlabb %[x], %[t], %[loop], %[x]\n\t" ORBIT_ADD_PAIRS
        "subs %[loop], %[loop], #0x10000\n\t"
        "bhs 1b"
        : ORBIT_PAIRS_OF(lanes->pairs), [t] "=&r"(t), [u] "=&r"(u), [w] "=&r"(w), [x] "+r"(x), [e] "+r"(entries),
          [loop] "+r"(loop)
        :
        : "memory", "cc");
  }
  if (count & 1) {
    orbit_lanes_add(lanes, (const int8_t *)x + (uint8_t)entries[1] * step, entries[0]);
    entries += 2;
  }
  return entries;
}

/* As orbit_lanes_run; two entries are (weight, weight, steps of both in 4 bits each). */
static inline const int8_t *orbit_lanes_run_short(orbit_lanes *lanes, const int8_t *entries, int32_t count,
                                                  const void *x, int32_t step) {
  int32_t t, u, w, loop = step | (int32_t)((uint32_t)(count / 2 - 1) << 16);
  if (count >= 2) {
    __asm__ volatile(
        "1:\n\t"
        "ldrb %[t], [%[e], #2]\n\t"
        "ldrsb %[w], [%[e]], #3\n\t"
        "and %[t], %[t], #15\n\t"
        "smlabb %[x], %[t], %[loop], %[x]\n\t" ORBIT_ADD_PAIRS
        "ldrb %[t], [%[e], #-1]\n\t"
        "ldrsb %[w], [%[e], #-2]\n\t"
        "lsr %[t], %[t], #4\n\t"
        "smlabb %[x], %[t], %[loop], %[x]\n\t" ORBIT_ADD_PAIRS
        "subs %[loop], %[loop], #0x10000\n\t"
        "bhs 1b"
        : ORBIT_PAIRS_OF(lanes->pairs), [t] "=&r"(t), [u] "=&r"(u), [w] "=&r"(w), [x] "+r"(x), [e] "+r"(entries),
          [loop] "+r"(loop)
        :
        : "memory", "cc");
  }
  if (count & 1) {
    orbit_lanes_add(lanes, (const int8_t *)x + (uint8_t)entries[1] * step, entries[0]);
    entries += 2;
  }
  return entries;
}

#else

#define ORBIT_LANE_BYTES 1
typedef struct {
  int32_t sums[ORBIT_LANES];
} orbit_lanes;

static inline void orbit_fill_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  orbit_fill_bytes(layer, rows, line, row);
}

static inline void orbit_lanes_start(orbit_lanes *lanes) {
  memset(lanes, 0, sizeof *lanes);
}

static inline void orbit_lanes_flush(orbit_lanes *lanes) {
  (void)lanes;
}

static inline void orbit_lanes_end(orbit_lanes *lanes, int32_t *sums) {
  memcpy(sums, lanes->sums, sizeof lanes->sums);
}

/* One weight for the eight columns from x on. */
static inline void orbit_lanes_add(orbit_lanes *lanes, const void *x, int32_t weight) {
  orbit_add_lanes(lanes->sums, (const int8_t *)x, weight);
}

/* Three weights, the first for the eight columns from x on, each next one column on: a column is read once for all. */
static inline void orbit_lanes_add_three(orbit_lanes *lanes, const void *x, const int8_t *weights) {
  const int8_t *const at = (const int8_t *)x;
  const int32_t w0 = weights[0], w1 = weights[1], w2 = weights[2];
  int32_t *const s = lanes->sums;
  s[0] += at[0] * w0 + at[1] * w1 + at[2] * w2;
  s[1] += at[1] * w0 + at[2] * w1 + at[3] * w2;
  s[2] += at[2] * w0 + at[3] * w1 + at[4] * w2;
  s[3] += at[3] * w0 + at[4] * w1 + at[5] * w2;
  s[4] += at[4] * w0 + at[5] * w1 + at[6] * w2;
  s[5] += at[5] * w0 + at[6] * w1 + at[7] * w2;
  s[6] += at[6] * w0 + at[7] * w1 + at[8] * w2;
  s[7] += at[7] * w0 + at[8] * w1 + at[9] * w2;
}

/* `count` entries (weight, steps to its channel) for the eight columns from x on; returns their end. */
static inline const int8_t *orbit_lanes_run(orbit_lanes *lanes, const int8_t *entries, int32_t count, const void *x,
                                            int32_t step) {
  const int8_t *at = (const int8_t *)x;
  int32_t sums[ORBIT_LANES];
  memcpy(sums, lanes->sums, sizeof sums);
  for (; count > 0; --count, entries += 2) {
    at += (uint8_t)entries[1] * step;
    orbit_add_lanes(sums, at, entries[0]);
  }
  memcpy(lanes->sums, sums, sizeof sums);
  return entries;
}

/* As orbit_lanes_run; two entries are (weight, weight, steps of both in 4 bits each). */
static inline const int8_t *orbit_lanes_run_short(orbit_lanes *lanes, const int8_t *entries, int32_t count,
                                                  const void *x, int32_t step) {
  const int8_t *at = (const int8_t *)x;
  int32_t sums[ORBIT_LANES];
  memcpy(sums, lanes->sums, sizeof sums);
  for (; count > 1; count -= 2, entries += 3) {
    const int32_t steps = (uint8_t)entries[2];
    at += (steps & 15) * step;
    orbit_add_lanes(sums, at, entries[0]);
    at += (steps >> 4) * step;
    orbit_add_lanes(sums, at, entries[1]);
  }
  if (count) {
    at += (uint8_t)entries[1] * step;
    orbit_add_lanes(sums, at, entries[0]);
    entries += 2;
  }
  memcpy(lanes->sums, sums, sizeof sums);
  return entries;
}

#endif

#endif /* ORBIT_CONV_LANES_H_ */
