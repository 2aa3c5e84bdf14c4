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

/* Four sums of one channel as orbit_conv_store has them; shift is from -31 to -1. */
static inline void vector_store(const orbit_conv *layer, int32_t channel, int32x4_t sums, uint32x4_t offsets,
                                int8_t *out) {
  int32x4_t values = vqrdmulhq_n_s32(vaddq_n_s32(sums, layer->bias[channel]), layer->multiplier[channel]);
  values = vaddq_s32(values, vshrq_n_s32(values, 31));
  values = vaddq_n_s32(vrshlq_s32(values, vdupq_n_s32(layer->shift[channel])), layer->out_zero);
  values = vminq_s32(vmaxq_s32(values, vdupq_n_s32(layer->act_min)), vdupq_n_s32(layer->act_max));
  vstrbq_scatter_offset_s32(out, offsets, values);
}

/* All channels of the `pixels` output pixels whose input begins `offset` bytes behind the rows'. */
ORBIT_APART void vector_pixels(const orbit_conv *layer, const orbit_rows *rows, const int32_t *offset, int32_t pixels,
                               int8_t *out) {
  const int one_run = layer->dilation_w == 1;
  const int32_t count = one_run ? layer->kernel_w * layer->in_c : layer->in_c, runs = one_run ? 1 : layer->kernel_w;
  const uint32x4_t offsets = vmulq_n_u32(vidupq_n_u32(0, 1), (uint32_t)layer->out_c);
  const int8_t *weights = (const int8_t *)layer->weights;
  const int8_t **end = rows->place;
  int32_t channel, ky, kx, i;
  for (ky = 0; ky < layer->kernel_h; ++ky) {
    for (kx = 0; kx < runs; ++kx) {
      for (i = 0; i < VECTOR_PIXELS; ++i) *end++ = rows->row[ky] + kx * layer->dilation_w * layer->in_c + offset[i];
    }
  }
  for (channel = 0; channel < layer->out_c; ++channel, ++out) {
    const int32_t shift = layer->shift[channel];
    int32_t sums[VECTOR_PIXELS];
    weights = vector_runs(sums, rows->place, end, weights, count);
    if (pixels == VECTOR_PIXELS && shift <= -1 && shift >= -31) {
      vector_store(layer, channel, vldrwq_s32(sums), offsets, out);
    } else {
      orbit_conv_store(layer, channel, sums, pixels, out);
    }
  }
}

#else

/* All channels of the `pixels` output pixels whose input begins `offset` bytes behind the rows'. */
ORBIT_APART void vector_pixels(const orbit_conv *layer, const orbit_rows *rows, const int32_t *offset, int32_t pixels,
                               int8_t *out) {
  const int8_t *weights = (const int8_t *)layer->weights;
  int32_t channel, ky, kx, i, c;
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
      vector_pixels(layer, &rows, offset, pixels, output);
      output += (ptrdiff_t)pixels * layer->out_c;
    }
  }
}
