/* Convolution with N non-zero weights in every group of M consecutive input channels, at each place of the kernel.
 *
 * Weights: 4 bytes of header (N; M; whether sums are flushed after each place of the kernel; bits of an index, 4 or 8);
 * then for each output channel and place of the kernel what its groups keep:
 *
 * - 2:4: two groups are five bytes: first weight of either, second weight of either, and in 4 bits each (the first
 *   group's below) the steps between pairs. The pairs (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3) of each group's
 *   channels are counted through all groups, six a group; a step is from the last group's pair, at first from pair 0.
 *   An odd last group is three bytes: its weights and the step.
 * - other N and M: single entries. With 8 bits (weight, channels from the entry before, or from channel 0); with 4 bits
 *   two entries are three bytes, (weight, weight, both distances), and an odd last one is as with 8 bits.
 */
#include "conv_lanes.h"

static int32_t nm_count(const orbit_conv *layer) {
  const int8_t *const header = (const int8_t *)layer->weights;
  return (layer->in_c + header[1] - 1) / header[1] * header[0];
}

/* Eight pixels from x on, by single entries. */
static const int8_t *nm_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries, int32_t x, int32_t *sums) {
  const int8_t *const header = (const int8_t *)layer->weights;
  const int32_t count = nm_count(layer), step = rows->columns * ORBIT_LANE_BYTES;
  int32_t ky, kx;
  orbit_lanes lanes;
  orbit_lanes_start(&lanes);
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    for (kx = 0; kx < layer->kernel_w; ++kx) {
      const int8_t *const at = (const int8_t *)rows->row[ky] + (orbit_place(layer, rows, kx) + x) * ORBIT_LANE_BYTES;
      entries = header[3] == 4 ? orbit_lanes_run_short(&lanes, entries, count, at, step)
                               : orbit_lanes_run(&lanes, entries, count, at, step);
      if (header[2]) orbit_lanes_flush(&lanes);
    }
  }
  orbit_lanes_end(&lanes, sums);
  return entries;
}

/* The pixel x alone, by single entries. */
static const int8_t *nm_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries, int32_t x, int32_t *sums) {
  const int8_t *const header = (const int8_t *)layer->weights;
  int32_t ky, kx, total = 0;
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    for (kx = 0; kx < layer->kernel_w; ++kx) {
      const int8_t *at = (const int8_t *)rows->row[ky] + (orbit_place(layer, rows, kx) + x) * layer->in_c;
      int32_t count = nm_count(layer);
      for (; header[3] == 4 && count > 1; count -= 2, entries += 3) {
        const int32_t steps = (uint8_t)entries[2];
        at += steps & 15;
        total += entries[0] * *at;
        at += steps >> 4;
        total += entries[1] * *at;
      }
      for (; count > 0; --count, entries += 2) {
        at += (uint8_t)entries[1];
        total += entries[0] * *at;
      }
    }
  }
  *sums = total;
  return entries;
}

/* ---- 2:4 --------------------------------------------------------------------------------------------------------- */

/* The channels of a group, or 0 where there are none: their weights are 0. */
static void nm_group(const orbit_conv *layer, const int8_t *pixel, int32_t first, int8_t *four) {
  int32_t i;
  for (i = 0; i < 4; ++i) {
    const int32_t value = pixel != NULL ? pixel[orbit_min_of(first + i, layer->in_c - 1)] : layer->in_zero;
    four[i] = (int8_t)(first + i < layer->in_c ? value : 0);
  }
}

#if defined(__ARM_FEATURE_DSP)

#define NM_PAIR_BYTES 4
/* int16 [pair][column][2] */
static void nm_fill_pairs(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  int32_t place, c;
  for (place = 0; place < rows->columns; ++place) {
    const int8_t *const pixel = orbit_column(layer, rows, line, place);
    uint32_t *out = (uint32_t *)row + place;
    for (c = 0; c < layer->in_c; c += 4) {
      uint32_t even, odd, four;
      int8_t group[4];
      if (pixel != NULL && c + 4 <= layer->in_c) {
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

#define NM_EIGHT                     \
  "ldrd %[t], %[u], [%[x]]\n\t"      \
  "smlad %[a], %[t], %[w], %[a]\n\t" \
  "smlad %[b], %[u], %[w], %[b]\n\t" \
  "ldrd %[t], %[u], [%[x], #8]\n\t"  \
  "smlad %[c], %[t], %[w], %[c]\n\t" \
  "smlad %[d], %[u], %[w], %[d]\n\t" \
  "ldrd %[t], %[u], [%[x], #16]\n\t" \
  "smlad %[e], %[t], %[w], %[e]\n\t" \
  "smlad %[f], %[u], %[w], %[f]\n\t" \
  "ldrd %[t], %[u], [%[x], #24]\n\t" \
  "smlad %[g], %[t], %[w], %[g]\n\t" \
  "smlad %[h], %[u], %[w], %[h]\n\t"
#define NM_SUMS                                                                                                   \
  [a] "+r"(s[0]), [b] "+r"(s[1]), [c] "+r"(s[2]), [d] "+r"(s[3]), [e] "+r"(s[4]), [f] "+r"(s[5]), [g] "+r"(s[6]), \
      [h] "+r"(s[7])

/* The groups of one place of the kernel for the eight columns from x on. */
static inline const int8_t *nm_run_pairs(int32_t *s, const int8_t *entries, int32_t groups, const void *x,
                                         int32_t step) {
  int32_t t, u, w, loop = step | (int32_t)((uint32_t)(groups / 2 - 1) << 16);
  if (groups >= 2) {
    __asm__ volatile(
        "1:\n\t"
        "ldrb %[t], [%[en], #4]\n\t"
        "ldr %[w], [%[en]], #5\n\t"
        "and %[t], %[t], #15\n\t"
        "sxtb16 %[w], %[w]\n\t"
        "smlabb %[x], %[t], %[loop], %[x]\n\t" NM_EIGHT
        "ldrb %[t], [%[en], #-1]\n\t"
        "ldr %[w], [%[en], #-5]\n\t"
        "lsr %[t], %[t], #4\n\t"
        "sxtb16 %[w], %[w], ror #8\n\t"
        "smlabb %[x], %[t], %[loop], %[x]\n\t" NM_EIGHT
        "subs %[loop], %[loop], #0x10000\n\t"
        "bhs 1b"
        : NM_SUMS, [t] "=&r"(t), [u] "=&r"(u), [w] "=&r"(w), [x] "+r"(x), [en] "+r"(entries), [loop] "+r"(loop)
        :
        : "memory", "cc");
  }
  if (groups & 1) {
    x = (const int8_t *)x + (uint8_t)entries[2] * step;
    w = (int32_t)(((uint32_t)(uint8_t)entries[0] & 0xffu) | (uint32_t)(uint8_t)entries[1] << 16);
    __asm__ volatile("sxtb16 %[w], %[w]\n\t" NM_EIGHT
                     : NM_SUMS, [t] "=&r"(t), [u] "=&r"(u), [w] "+r"(w)
                     : [x] "r"(x)
                     : "memory");
    entries += 3;
  }
  return entries;
}

#else

#define NM_PAIR_BYTES 2
/* int8 [pair][column][2] */
static void nm_fill_pairs(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line, void *row) {
  static const int8_t pairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
  int32_t place, c, i;
  for (place = 0; place < rows->columns; ++place) {
    const int8_t *const pixel = orbit_column(layer, rows, line, place);
    int8_t *out = (int8_t *)row + 2 * place;
    for (c = 0; c < layer->in_c; c += 4) {
      int8_t group[4];
      nm_group(layer, pixel, c, group);
      for (i = 0; i < 6; ++i, out += 2 * rows->columns) {
        out[0] = group[pairs[i][0]];
        out[1] = group[pairs[i][1]];
      }
    }
  }
}

static inline void nm_add_pair(int32_t *s, const int8_t *x, int32_t first, int32_t second) {
  s[0] += x[0] * first + x[1] * second;
  s[1] += x[2] * first + x[3] * second;
  s[2] += x[4] * first + x[5] * second;
  s[3] += x[6] * first + x[7] * second;
  s[4] += x[8] * first + x[9] * second;
  s[5] += x[10] * first + x[11] * second;
  s[6] += x[12] * first + x[13] * second;
  s[7] += x[14] * first + x[15] * second;
}

/* The groups of one place of the kernel for the eight columns from x on. */
static inline const int8_t *nm_run_pairs(int32_t *s, const int8_t *entries, int32_t groups, const void *x,
                                         int32_t step) {
  const int8_t *at = (const int8_t *)x;
  for (; groups > 1; groups -= 2, entries += 5) {
    const int32_t steps = (uint8_t)entries[4];
    at += (steps & 15) * step;
    nm_add_pair(s, at, entries[0], entries[2]);
    at += (steps >> 4) * step;
    nm_add_pair(s, at, entries[1], entries[3]);
  }
  if (groups) {
    nm_add_pair(s, at + (uint8_t)entries[2] * step, entries[0], entries[1]);
    entries += 3;
  }
  return entries;
}

#endif

/* Eight pixels from x on, by pairs. */
static const int8_t *nm_pair_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries, int32_t x, int32_t *sums) {
  const int32_t groups = (layer->in_c + 3) / 4;
  int32_t s[ORBIT_LANES] = {0};
  int32_t ky, kx;
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    for (kx = 0; kx < layer->kernel_w; ++kx) {
      const int8_t *const at = (const int8_t *)rows->row[ky] + (orbit_place(layer, rows, kx) + x) * NM_PAIR_BYTES;
      entries = nm_run_pairs(s, entries, groups, at, rows->columns * NM_PAIR_BYTES);
    }
  }
  memcpy(sums, s, sizeof s);
  return entries;
}

/* The pixel x alone, by pairs. */
static const int8_t *nm_pair_pixel(const orbit_conv *layer, const orbit_rows *rows, const int8_t *entries, int32_t x, int32_t *sums) {
  static const int8_t first[6] = {0, 0, 0, 1, 1, 2}, second[6] = {1, 2, 3, 2, 3, 3};
  int32_t ky, kx, group, total = 0;
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    for (kx = 0; kx < layer->kernel_w; ++kx) {
      const int8_t *at = (const int8_t *)rows->row[ky] + (orbit_place(layer, rows, kx) + x) * layer->in_c;
      int32_t left = layer->in_c, pair = 0;
      for (group = 0; left > 0; ++group, left -= 4, at += 4) {
        /* the two groups of five bytes, or the three of a last one */
        const int odd = group & 1, alone = !odd && left <= 4;
        const int32_t steps = (uint8_t)entries[alone ? 2 : 4];
        const int32_t w0 = entries[alone ? 0 : odd], w1 = entries[alone ? 1 : 2 + odd];
        pair += (odd ? steps >> 4 : steps & 15) - (group ? 6 : 0);
        total += w0 * at[orbit_min_of(first[pair], left - 1)] + w1 * at[orbit_min_of(second[pair], left - 1)];
        entries += alone ? 3 : odd ? 5 : 0;
      }
    }
  }
  *sums = total;
  return entries;
}

void orbit_conv2d_nm_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch) {
  const int8_t *const header = (const int8_t *)layer->weights;
  const int pairs = header[0] == 2 && header[1] == 4;
  if (orbit_is_narrow(layer)) {
    const orbit_rows rows = orbit_rows_of(layer, 1, 1, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_pixels, pairs ? nm_pair_pixel : nm_pixel, 1, 4);
  } else if (pairs) {
    const orbit_rows rows = orbit_rows_of(layer, 4, 6 * NM_PAIR_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, nm_fill_pairs, nm_pair_lanes, ORBIT_LANES, 4);
  } else {
    const orbit_rows rows = orbit_rows_of(layer, 1, ORBIT_LANE_BYTES, scratch);
    orbit_conv_run(layer, &rows, input, output, orbit_fill_lanes, nm_lanes, ORBIT_LANES, 4);
  }
}
