/* Int8 kernels of orbit_kd. Activations are int8 in the order height, width, channels (NHWC, batch 1).
 *
 * Every kernel gives, bit for bit, what the reference kernels of TensorFlow Lite give. None keeps state: whatever a
 * kernel needs beside its tensors is in its structure, which may be constant, and in the scratch that it is handed.
 */
#ifndef ORBIT_KERNELS_H_
#define ORBIT_KERNELS_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- Arithmetic -------------------------------------------------------------------------------------------------- */

/* Floor of x / 2^bits. Compilers make one arithmetic shift of it; >> of a negative number is not defined by C99. */
static inline int32_t orbit_shift_right(int32_t x, int32_t bits) {
  return x < 0 ? ~(~x >> bits) : x >> bits;
}

/* x * multiplier / 2^31, rounded to nearest, halves away from zero, where the multiplier is not negative. */
static inline int32_t orbit_multiply_high(int32_t x, int32_t multiplier) {
  const int64_t product = (int64_t)x * multiplier;
  const int64_t nudge = product < 0 ? 1 - ((int64_t)1 << 30) : (int64_t)1 << 30;
  return (int32_t)((product + nudge) / ((int64_t)1 << 31));
}

/* x / 2^bits, rounded to nearest, halves away from zero. */
static inline int32_t orbit_round_shift_right(int32_t x, int32_t bits) {
  const int32_t mask = (int32_t)(((uint32_t)1 << bits) - 1u);
  const int32_t rest = x & mask;
  const int32_t half = (mask >> 1) + (x < 0 ? 1 : 0);
  return orbit_shift_right(x, bits) + (rest > half ? 1 : 0);
}

/* x * multiplier * 2^(shift - 31). It is rounded twice, as TensorFlow Lite rounds it. */
static inline int32_t orbit_requantize(int32_t x, int32_t multiplier, int32_t shift) {
  const int32_t left = shift > 0 ? shift : 0;
  const int32_t right = shift > 0 ? 0 : -shift;
  return orbit_round_shift_right(orbit_multiply_high((int32_t)((uint32_t)x << left), multiplier), right);
}

static inline int32_t orbit_clamp(int32_t x, int32_t low, int32_t high) {
  return x < low ? low : x > high ? high : x;
}

/* ---- Convolution and dense layers -------------------------------------------------------------------------------- */

/* A dense layer is a convolution of 1 x 1 pixel with a kernel of 1 x 1. */
typedef struct {
  int32_t in_h, in_w, in_c, out_h, out_w, out_c;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  int32_t in_zero, out_zero, act_min, act_max;
  const int32_t *multiplier; /* Q31, of each output channel */
  const int8_t *shift;       /* power of two, of each output channel; positive is to the left */
  const int32_t *bias;       /* of each output channel, with -in_zero * sum(weights) in it; padded places hold in_zero */
  const void *weights;       /* packed as the kernel's format says */
} orbit_conv;

/* The scratch is aligned to 8 bytes, and as large as the exporter's `scratch_bytes` of the format says. */
void orbit_conv2d_dense_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);
void orbit_conv2d_nm_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);
void orbit_conv2d_shared_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);
void orbit_conv2d_csr_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);

#endif /* ORBIT_KERNELS_H_ */
