/* Convolution with N non-zero weights in every group of M consecutive input channels, at each place of the kernel.
 *
 * Weights: 4 bytes of header (N; M; whether sums are flushed after each place of the kernel; bits of an index, 4 or 8);
 * then for each output channel and place of the kernel what its groups keep:
 *
 * - 2:4: two groups are five bytes: first weight of either, second weight of either, and in 4 bits each (the first
 *   group's below) the steps between pairs. The pairs (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3) of each group's
 *   channels are counted through all groups, six a group; a step is from the last group's pair, at first from pair 0.
 *   An odd last group is three bytes: its weights and the step. With an index of 8 bits, which takes fewer instructions,
 *   two groups are six bytes, each step one of them.
 * - other N and M: entries as conv_lanes.h has them; short ones with 4 bits.
 */
#include "conv_lanes.h"

static int32_t nm_count(const orbit_conv *layer) {
  const int8_t *const header = (const int8_t *)layer->weights;
  return (layer->in_c + header[1] - 1) / header[1] * header[0];
}

static const int8_t *nm_short_run(orbit_lanes *lanes, const int8_t *entries, int32_t count, const int8_t *x,
                                  int32_t step) {
  orbit_rows one;
  one.step = step;
  one.place = &x;
  one.end = one.place + 1;
  return orbit_lanes_short(lanes, entries, &one, count);
}

ORBIT_APART const int8_t *nm_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries, int32_t *sums) {
  const int8_t *const header = (const int8_t *)layer->weights;
  const int32_t places = layer->kernel_h * layer->kernel_w, count = nm_count(layer);
  const int32_t step = rows->step;
  int32_t i;
  orbit_lanes lanes;
  orbit_lanes_start(&lanes);
  if (header[3] == 4 && !header[2]) {
    entries = orbit_lanes_short(&lanes, entries, rows, count);
  } else {
    for (i = 0; i < places; ++i) {
      entries = header[3] == 4 ? nm_short_run(&lanes, entries, count, rows->place[i], step)
                               : orbit_lanes_run(&lanes, entries, count, rows->place[i], step);
      if (header[2]) orbit_lanes_flush(&lanes);
    }
  }
  orbit_lanes_end(&lanes, sums);
  return entries;
}

ORBIT_APART const int8_t *nm_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries, int32_t *sums) {
  const int8_t *const header = (const int8_t *)layer->weights;
  int32_t i, total = 0;
  for (i = 0; i < layer->kernel_h * layer->kernel_w; ++i) {
    const int8_t *x = rows->place[i];
    int32_t count = nm_count(layer);
    for (; header[3] == 4 && count > 1; count -= 2, entries += 3) {
      const int32_t steps = (uint8_t)entries[2];
      x += steps & 15;
      total += entries[0] * *x;
      x += steps >> 4;
      total += entries[1] * *x;
    }
    for (; count > 0; --count, entries += 2) {
      x += (uint8_t)entries[0];
      total += entries[1] * *x;
    }
  }
  *sums = total;
  return entries;
}

/* ---- 2:4 --------------------------------------------------------------------------------------------------------- */

/* Bytes of two groups. */
static int32_t nm_two_groups(const orbit_conv *layer) {
  return ((const int8_t *)layer->weights)[3] == 4 ? 5 : 6;
}

/* The step of the first (0) or second (1) of two groups. */
static inline int32_t nm_step(const int8_t *entries, int32_t two, int32_t which) {
  if (two == 6) return (uint8_t)entries[4 + which];
  return which ? (uint8_t)entries[4] >> 4 : (uint8_t)entries[4] & 15;
}

/* The channels of a group; behind the last one, where weights are 0, anything. */
static void nm_group(const orbit_conv *layer, const int8_t *pixel, int32_t first, int8_t *four) {
  int32_t i;
  for (i = 0; i < 4; ++i) {
    four[i] = pixel != NULL ? pixel[orbit_min_of(first + i, layer->in_c - 1)] : (int8_t)layer->in_zero;
  }
}

#if defined(ORBIT_CORTEX_M) && defined(__ARM_FEATURE_DSP)

#define NM_PAIR_BYTES 4
/* int16 [pair][column][2] */
ORBIT_APART void nm_fill_pairs(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  int32_t column, c;
  for (column = 0; column < rows->columns; ++column) {
    const int8_t *const pixel = orbit_column(layer, rows, line, column);
    uint32_t *out = (uint32_t *)row + column;
    for (c = 0; c < layer->in_c; c += 4) {
      uint32_t even, odd, four;
      int8_t group[4];
      if (pixel == NULL) {
        four = (uint32_t)(uint8_t)layer->in_zero * 0x01010101u;
      } else if (c + 4 <= layer->in_c) {
        memcpy(&four, pixel + c, sizeof four);
      } else {
        nm_group(layer, pixel, c, group);
        memcpy(&four, group, sizeof four);
      }
      __asm__("sxtb16 %0, %1" : "=r"(even) : "r"(four));
      __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(four));
      out[0] = (even & 0xffffu) | odd << 16;
      out += rows->columns;
      out[0] = even;
      out += rows->columns;
      out[0] = (even & 0xffffu) | (odd & 0xffff0000u);
      out += rows->columns;
      out[0] = (odd & 0xffffu) | (even & 0xffff0000u);
      out += rows->columns;
      out[0] = odd;
      out += rows->columns;
      out[0] = even >> 16 | (odd & 0xffff0000u);
      out += rows->columns;
    }
  }
}

#else

static int8_t *nm_put(int8_t *out, int32_t next, int8_t first, int8_t second) {
  out[0] = first;
  out[1] = second;
  return out + next;
}

#define NM_PAIR_BYTES 2
/* int8 [pair][column][2] */
ORBIT_APART void nm_fill_pairs(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  const int32_t next = 2 * rows->columns;
  int32_t column, c;
  for (column = 0; column < rows->columns; ++column) {
    const int8_t *const pixel = orbit_column(layer, rows, line, column);
    int8_t *out = (int8_t *)row + 2 * column;
    for (c = 0; c < layer->in_c; c += 4) {
      int8_t group[4];
      const int8_t *four = group;
      if (pixel != NULL && c + 4 <= layer->in_c) {
        four = pixel + c;
      } else {
        nm_group(layer, pixel, c, group);
      }
      out = nm_put(out, next, four[0], four[1]);
      out = nm_put(out, next, four[0], four[2]);
      out = nm_put(out, next, four[0], four[3]);
      out = nm_put(out, next, four[1], four[2]);
      out = nm_put(out, next, four[1], four[3]);
      out = nm_put(out, next, four[2], four[3]);
    }
  }
}

#endif

#if defined(ORBIT_CORTEX_M)

#define NM_SUMS "+r"(s0), "+r"(s1), "+r"(s2), "+r"(s3), "+r"(s4), "+r"(s5), "+r"(s6), "+r"(s7)

#if defined(__ARM_FEATURE_DSP)
#define NM_DO_ADD                      \
  ORBIT_DO_STEP                        \
  "ldrd %[t], %[u], [%[x]]\n\t"        \
  "smlad %0, %[t], %[w], %0\n\t"       \
  "smlad %1, %[u], %[w], %1\n\t"       \
  "ldrd %[t], %[u], [%[x], #8]\n\t"    \
  "smlad %2, %[t], %[w], %2\n\t"       \
  "smlad %3, %[u], %[w], %3\n\t"       \
  "ldrd %[t], %[u], [%[x], #16]\n\t"   \
  "smlad %4, %[t], %[w], %4\n\t"       \
  "smlad %5, %[u], %[w], %5\n\t"       \
  "ldrd %[t], %[u], [%[x], #24]\n\t"   \
  "smlad %6, %[t], %[w], %6\n\t"       \
  "smlad %7, %[u], %[w], %7\n\t"
#define NM_DO_TWO_GROUPS               \
  "1:\n\t"                             \
  "ldrb %[t], [%[e], #4]\n\t"          \
  "ldr %[w], [%[e]], #5\n\t"           \
  "and %[t], %[t], #15\n\t"            \
  "sxtb16 %[w], %[w]\n\t" NM_DO_ADD    \
  "ldrb %[t], [%[e], #-1]\n\t"         \
  "ldr %[w], [%[e], #-5]\n\t"          \
  "lsr %[t], %[t], #4\n\t"             \
  "sxtb16 %[w], %[w], ror #8\n\t" NM_DO_ADD ORBIT_DO_ROUND_END("1")
#define NM_DO_LONG_GROUPS              \
  "ldrb %[t], [%[e], #4]\n\t"          \
  "ldr %[w], [%[e]], #6\n\t"           \
  "sxtb16 %[w], %[w]\n\t" NM_DO_ADD    \
  "ldrb %[t], [%[e], #-1]\n\t"         \
  "ldr %[w], [%[e], #-6]\n\t"          \
  "sxtb16 %[w], %[w], ror #8\n\t" NM_DO_ADD
#define NM_DO_GROUP                    \
  "ldrb %[t], [%[e], #2]\n\t"          \
  "ldrh %[w], [%[e]], #3\n\t"          \
  "orr %[w], %[w], %[w], lsl #8\n\t"   \
  "sxtb16 %[w], %[w]\n\t" NM_DO_ADD
#else
#define NM_DO_FIRST                                                                                     \
  ORBIT_DO_STEP ORBIT_DO_LANE("0", "0") ORBIT_DO_LANE("1", "2") ORBIT_DO_LANE("2", "4")                 \
  ORBIT_DO_LANE("3", "6") ORBIT_DO_LANE("4", "8") ORBIT_DO_LANE("5", "10") ORBIT_DO_LANE("6", "12")     \
  ORBIT_DO_LANE("7", "14")
#define NM_DO_SECOND                                                                                    \
  ORBIT_DO_LANE("0", "1") ORBIT_DO_LANE("1", "3") ORBIT_DO_LANE("2", "5") ORBIT_DO_LANE("3", "7")       \
  ORBIT_DO_LANE("4", "9") ORBIT_DO_LANE("5", "11") ORBIT_DO_LANE("6", "13") ORBIT_DO_LANE("7", "15")
#define NM_DO_TWO_GROUPS               \
  "1:\n\t"                             \
  "ldrb %[t], [%[e], #4]\n\t"          \
  "ldrsb %[w], [%[e]], #5\n\t"         \
  "and %[t], %[t], #15\n\t" NM_DO_FIRST   \
  "ldrsb %[w], [%[e], #-3]\n\t" NM_DO_SECOND \
  "ldrb %[t], [%[e], #-1]\n\t"         \
  "ldrsb %[w], [%[e], #-4]\n\t"        \
  "lsr %[t], %[t], #4\n\t" NM_DO_FIRST \
  "ldrsb %[w], [%[e], #-2]\n\t" NM_DO_SECOND ORBIT_DO_ROUND_END("1")
#define NM_DO_LONG_GROUPS              \
  "ldrb %[t], [%[e], #4]\n\t"          \
  "ldrsb %[w], [%[e]], #6\n\t" NM_DO_FIRST \
  "ldrsb %[w], [%[e], #-4]\n\t" NM_DO_SECOND \
  "ldrb %[t], [%[e], #-1]\n\t"         \
  "ldrsb %[w], [%[e], #-5]\n\t" NM_DO_FIRST \
  "ldrsb %[w], [%[e], #-3]\n\t" NM_DO_SECOND
#define NM_DO_GROUP                    \
  "ldrb %[t], [%[e], #2]\n\t"          \
  "ldrsb %[w], [%[e]], #3\n\t" NM_DO_FIRST \
  "ldrsb %[w], [%[e], #-2]\n\t" NM_DO_SECOND
#endif

ORBIT_APART const int8_t *nm_pair_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries,
                                   int32_t *out) {
  const uint32_t groups = ((uint32_t)layer->in_c + 3u) / 4u;
  const int four = ((const int8_t *)layer->weights)[3] == 8 && groups % 4u == 0u;
  const uint32_t rounds = four ? groups / 4u : groups / 2u;
  const int32_t step = rows->step, first = step | (int32_t)((rounds - 1u) << 16);
  const int8_t **place = rows->place, **const end = rows->end;
  const int8_t *x;
  int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
  int32_t t, u, w, loop;
#define NM_DO_TWO_LONG_GROUPS "1:\n\t" NM_DO_LONG_GROUPS ORBIT_DO_ROUND_END("1")
#define NM_DO_FOUR_LONG_GROUPS "1:\n\t" NM_DO_LONG_GROUPS NM_DO_LONG_GROUPS ORBIT_DO_ROUND_END("1")
#define NM_WALK(body)                                                                                              \
  __asm__ volatile(ORBIT_DO_PLACE "ldr %[loop], %[first]\n\t" body ORBIT_DO_PLACE_END                              \
                   : NM_SUMS, ORBIT_TEMPORARIES, [x] "=&r"(x), [e] "+r"(entries), [loop] "=&r"(loop),              \
                     [place] "+m"(place)                                                                           \
                   : [end] "m"(end), [step] "m"(step), [first] "m"(first)                                          \
                   : "memory", "cc")
  if (groups == 1) {
    NM_WALK(NM_DO_GROUP);
  } else if (((const int8_t *)layer->weights)[3] == 4) {
    if (groups & 1) {
      NM_WALK(NM_DO_TWO_GROUPS NM_DO_GROUP);
    } else {
      NM_WALK(NM_DO_TWO_GROUPS);
    }
  } else if (four) {
    NM_WALK(NM_DO_FOUR_LONG_GROUPS);
  } else if (groups & 1) {
    NM_WALK(NM_DO_TWO_LONG_GROUPS NM_DO_GROUP);
  } else {
    NM_WALK(NM_DO_TWO_LONG_GROUPS);
  }
#undef NM_WALK
  out[0] = s0;
  out[1] = s1;
  out[2] = s2;
  out[3] = s3;
  out[4] = s4;
  out[5] = s5;
  out[6] = s6;
  out[7] = s7;
  return entries;
}

#else

ORBIT_WITHIN void nm_add_pair(int32_t *s, const int8_t *x, int32_t first, int32_t second) {
  s[0] += x[0] * first + x[1] * second;
  s[1] += x[2] * first + x[3] * second;
  s[2] += x[4] * first + x[5] * second;
  s[3] += x[6] * first + x[7] * second;
  s[4] += x[8] * first + x[9] * second;
  s[5] += x[10] * first + x[11] * second;
  s[6] += x[12] * first + x[13] * second;
  s[7] += x[14] * first + x[15] * second;
}

ORBIT_APART const int8_t *nm_pair_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries,
                                   int32_t *out) {
  const int32_t groups = (layer->in_c + 3) / 4, step = rows->step;
  int32_t sums[ORBIT_LANES] = {0, 0, 0, 0, 0, 0, 0, 0};
  const int32_t two = nm_two_groups(layer);
  int32_t i, left;
  for (i = 0; i < layer->kernel_h * layer->kernel_w; ++i) {
    const int8_t *x = rows->place[i];
    for (left = groups; left > 1; left -= 2, entries += two) {
      x += nm_step(entries, two, 0) * step;
      nm_add_pair(sums, x, entries[0], entries[2]);
      x += nm_step(entries, two, 1) * step;
      nm_add_pair(sums, x, entries[1], entries[3]);
    }
    if (left) {
      nm_add_pair(sums, x + (uint8_t)entries[2] * step, entries[0], entries[1]);
      entries += 3;
    }
  }
  memcpy(out, sums, sizeof sums);
  return entries;
}

#endif

ORBIT_APART const int8_t *nm_pair_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries,
                                   int32_t *sums) {
  static const int8_t first[6] = {0, 0, 0, 1, 1, 2}, second[6] = {1, 2, 3, 2, 3, 3};
  const int32_t two = nm_two_groups(layer);
  int32_t i, group, total = 0;
  for (i = 0; i < layer->kernel_h * layer->kernel_w; ++i) {
    const int8_t *x = rows->place[i];
    int32_t left = layer->in_c, pair = 0;
    for (group = 0; left > 0; ++group, left -= 4, x += 4) {
      /* one of two groups that are stored together, or a last one alone */
      const int odd = group & 1, alone = !odd && left <= 4;
      const int32_t step = alone ? (uint8_t)entries[2] : nm_step(entries, two, odd);
      const int32_t w0 = entries[alone ? 0 : odd], w1 = entries[alone ? 1 : 2 + odd];
      pair += step - (group ? 6 : 0);
      total += w0 * x[orbit_min_of(first[pair], left - 1)] + w1 * x[orbit_min_of(second[pair], left - 1)];
      entries += alone ? 3 : odd ? two : 0;
    }
  }
  *sums = total;
  return entries;
}

void orbit_conv2d_nm_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch) {
  const int8_t *const header = (const int8_t *)layer->weights;
  const int pairs = header[0] == 2 && header[1] == 4;
  if (orbit_is_narrow(layer)) {
    const orbit_rows rows = orbit_rows_of(layer, layer->in_c, layer->in_c, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_pixels, pairs ? nm_pair_pixel : nm_pixel, 1, 4);
  } else if (pairs) {
    const int32_t bytes = (layer->in_c + 3) / 4 * 6 * NM_PAIR_BYTES;
    const orbit_rows rows = orbit_rows_of(layer, bytes, NM_PAIR_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, nm_fill_pairs, nm_pair_lanes, ORBIT_LANES, 4);
  } else {
    const orbit_rows rows = orbit_rows_of(layer, layer->in_c * ORBIT_LANE_BYTES, ORBIT_LANE_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_lanes, nm_lanes, ORBIT_LANES, 4);
  }
}
