/* Convolution with all weights, for cores that multiply vectors: Helium of Cortex-M55. Others run it, but slowly.
 *
 * Weights: [output channel][kernel_h][kernel_w][input channel]. Where the kernel has no dilation along a row, what it
 * multiplies there is one run of kernel_w * in_c neighbours, in the weights as in the input.
 */
#include "conv_rows.h"

#define VECTOR_PIXELS 4

#if defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>

/* Sums of four pixels over all runs of a channel's weights; returns the weights' end. `place` has for each run where it
   begins for each pixel; a run has `count` weights, and the loop over them ends within a vector by itself. */
static inline const int8_t *vector_runs(int32_t *sums, const int8_t **place, const int8_t **end, const int8_t *weights,
                                        int32_t count) {
  const int8_t *x0, *x1, *x2, *x3;
  const int32_t back = count - (count + 15) / 16 * 16; /* what the last vector goes too far */
  int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  __asm__ volatile(
      "3:\n\t"
      "ldrd %[x0], %[x1], [%[place]], #8\n\t"
      "ldrd %[x2], %[x3], [%[place]], #8\n\t"
      "wlstp.8 lr, %[count], 2f\n"
      "1:\n\t"
      "vldrb.8 q0, [%[w]], #16\n\t"
      "vldrb.8 q1, [%[x0]], #16\n\t"
      "vmladava.s8 %[s0], q0, q1\n\t"
      "vldrb.8 q2, [%[x1]], #16\n\t"
      "vmladava.s8 %[s1], q0, q2\n\t"
      "vldrb.8 q3, [%[x2]], #16\n\t"
      "vmladava.s8 %[s2], q0, q3\n\t"
      "vldrb.8 q1, [%[x3]], #16\n\t"
      "vmladava.s8 %[s3], q0, q1\n\t"
      "letp lr, 1b\n"
      "2:\n\t"
      "cmp %[place], %[end]\n\t"
      "add %[w], %[w], %[back]\n\t"
      "bne 3b"
      : [s0] "+Te"(s0), [s1] "+Te"(s1), [s2] "+Te"(s2), [s3] "+Te"(s3), [x0] "=&r"(x0), [x1] "=&r"(x1),
        [x2] "=&r"(x2), [x3] "=&r"(x3), [w] "+r"(weights), [place] "+r"(place)
      : [count] "r"(count), [end] "r"(end), [back] "r"(back)
      : "lr", "q0", "q1", "q2", "q3", "memory", "cc");
  sums[0] = s0;
  sums[1] = s1;
  sums[2] = s2;
  sums[3] = s3;
  return weights;
}

/* Four sums of each of four channels, from `channel` on, become int8 as in orbit_conv_store; shifts are from -31 to -1. */
static inline void vector_store(const orbit_conv *layer, int32_t channel, const int32_t *sums, int8_t *out) {
  const uint32x4_t places = vidupq_n_u32(0, 4);
  const int32x4_t bias = vldrwq_s32(layer->bias + channel), multiplier = vldrwq_s32(layer->multiplier + channel);
  const int32x4_t shift = vldrbq_s32(layer->shift + channel);
  const int32x4_t low = vdupq_n_s32(layer->act_min), most = vdupq_n_s32(layer->act_max);
  const int32_t zero = layer->out_zero, out_c = layer->out_c;
  int32_t i;
  for (i = 0; i < VECTOR_PIXELS; ++i, out += out_c) {
    int32x4_t values = vldrwq_gather_shifted_offset_s32(sums + i, places);
    values = vqrdmulhq_s32(vaddq_s32(values, bias), multiplier);
    values = vrshlq_s32(vaddq_s32(values, vshrq_n_s32(values, 31)), shift);
    vstrbq_s32(out, vminq_s32(vmaxq_s32(vaddq_n_s32(values, zero), low), most));
  }
}

/* Whether vector_store is for all channels. */
static int vector_stores(const orbit_conv *layer) {
  int32_t channel;
  for (channel = 0; channel < layer->out_c; ++channel) {
    if (layer->shift[channel] > -1 || layer->shift[channel] < -31) return 0;
  }
  return 1;
}

/* All channels of the `pixels` output pixels whose input begins `offset` bytes behind the rows'; `whole` as
   `vector_stores` says. */
ORBIT_APART void vector_pixels(const orbit_conv *layer, const orbit_rows *rows, const int32_t *offset, int32_t pixels,
                               int whole, int8_t *out) {
  const int one_run = layer->dilation_w == 1;
  const int32_t count = one_run ? layer->kernel_w * layer->in_c : layer->in_c, runs = one_run ? 1 : layer->kernel_w;
  const int8_t *weights = (const int8_t *)layer->weights;
  const int8_t **end = rows->place;
  int32_t channel, ky, kx, i;
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    for (kx = 0; kx < runs; ++kx) {
      for (i = 0; i < VECTOR_PIXELS; ++i) *end++ = rows->row[ky] + kx * layer->dilation_w * layer->in_c + offset[i];
    }
  }
  channel = 0;
  if (pixels == VECTOR_PIXELS && whole) {
    for (; channel + 4 <= layer->out_c; channel += 4) {
      int32_t sums[4 * VECTOR_PIXELS];
      for (i = 0; i < 4; ++i) {
        weights = vector_runs(sums + VECTOR_PIXELS * i, rows->place, end, weights, count);
      }
      vector_store(layer, channel, sums, out + channel);
    }
  }
  for (; channel < layer->out_c; ++channel) {
    int32_t sums[VECTOR_PIXELS];
    weights = vector_runs(sums, rows->place, end, weights, count);
    orbit_conv_store(layer, channel, sums, pixels, out + channel);
  }
}

#else

static int vector_stores(const orbit_conv *layer) {
  (void)layer;
  return 0;
}

/* All channels of the `pixels` output pixels whose input begins `offset` bytes behind the rows'; `whole` as
   `vector_stores` says. */
ORBIT_APART void vector_pixels(const orbit_conv *layer, const orbit_rows *rows, const int32_t *offset, int32_t pixels,
                               int whole, int8_t *out) {
  const int8_t *weights = (const int8_t *)layer->weights;
  int32_t channel, ky, kx, i, c;
  (void)whole;
  for (channel = 0; channel < layer->out_c; ++channel) {
    int32_t sums[VECTOR_PIXELS] = {0, 0, 0, 0};
    for (ky = 0; ky < layer->kernel_h; ++ky) {
      for (kx = 0; kx < layer->kernel_w; ++kx, weights += layer->in_c) {
        const int8_t *const at = rows->row[ky] + kx * layer->dilation_w * layer->in_c;
        for (i = 0; i < pixels; ++i) {
          for (c = 0; c < layer->in_c; ++c) sums[i] += weights[c] * at[offset[i] + c];
        }
      }
    }
    orbit_conv_store(layer, channel, sums, pixels, out + channel);
  }
}

#endif

void orbit_conv2d_vector_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch) {
  const int whole = vector_stores(layer);
  orbit_conv plain = *layer;
  orbit_rows rows;
  int32_t y, x, i;
  /* columns in their own order, as for a stride of 1 */
  plain.out_w = (layer->out_w - 1) * layer->stride_w + 1;
  plain.stride_w = 1;
  rows = orbit_rows_of(&plain, layer->in_c, layer->in_c, scratch);
  for (y = 0; y < layer->out_h; ++y) {
    orbit_rows_load(&plain, &rows, input, y, orbit_fill_pixels);
    for (x = 0; x < layer->out_w; x += VECTOR_PIXELS) {
      const int32_t pixels = orbit_min_of(VECTOR_PIXELS, layer->out_w - x);
      int32_t offset[VECTOR_PIXELS];
      /* the last pixel of the row in place of those behind it */
      for (i = 0; i < VECTOR_PIXELS; ++i) {
        offset[i] = orbit_min_of(x + i, layer->out_w - 1) * layer->stride_w * layer->in_c;
      }
      vector_pixels(layer, &rows, offset, pixels, whole, output);
      output += (ptrdiff_t)pixels * layer->out_c;
    }
  }
}
