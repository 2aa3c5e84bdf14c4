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

/* x * multiplier / 2^31, rounded to nearest, halves up. The result fits into the 32 bits that are kept of the shift. */
static inline int32_t orbit_multiply_high(int32_t x, int32_t multiplier) {
  const int64_t product = (int64_t)x * multiplier + ((int64_t)1 << 30);
  return (int32_t)(uint32_t)((uint64_t)product >> 31);
}

/* x / 2^bits, rounded to nearest, halves away from zero. */
static inline int32_t orbit_round_shift_right(int32_t x, int32_t bits) {
  const int32_t mask = (int32_t)(((uint32_t)1 << bits) - 1u);
  const int32_t rest = x & mask;
  const int32_t half = (mask >> 1) + (x < 0 ? 1 : 0);
  return orbit_shift_right(x, bits) + (rest > half ? 1 : 0);
}

/* Taken from a shift, it says that a product is rounded once. */
#define ORBIT_ONCE 64

/* x * multiplier * 2^(shift - 31), rounded to nearest: twice, as TensorFlow Lite does (before and
 * after a shift to the right), or once, as its dense layers do. */
static inline int32_t orbit_requantize(int32_t x, int32_t multiplier, int32_t shift) {
  if (shift < -31) {
    const int32_t bits = 31 - (shift + ORBIT_ONCE);
    const int64_t product = (int64_t)(x < 0 ? -x : x) * multiplier + ((int64_t)1 << (bits - 1));
    const int32_t value = (int32_t)(product >> bits);
    return x < 0 ? -value : value;
  }
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
  const int8_t *shift;       /* power of two, of each output channel; positive is to the left; see ORBIT_ONCE */
  const int32_t *bias;       /* of each output channel, with -in_zero * sum(weights) in it; padded places hold in_zero */
  const void *weights;       /* packed as the kernel's format says */
} orbit_conv;

/* The scratch is aligned to 8 bytes, and as large as the exporter's `scratch_bytes` of the format says. */
void orbit_conv2d_dense_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);
void orbit_conv2d_nm_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);
void orbit_conv2d_shared_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);
void orbit_conv2d_csr_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);
void orbit_conv2d_vector_s8(const orbit_conv *layer, const int8_t *input, int8_t *output, void *scratch);

/* These take the plain bias, and weights of int8_t: (out_c, kernel_h, kernel_w, in_c), and of the depthwise ones
 * (kernel_h, kernel_w, out_c), where out_c is a multiple of in_c. */
void orbit_conv2d_plain_s8(const orbit_conv *layer, const int8_t *input, int8_t *output);
void orbit_depthwise_conv2d_s8(const orbit_conv *layer, const int8_t *input, int8_t *output);
void orbit_transpose_conv2d_s8(const orbit_conv *layer, const int8_t *input, int8_t *output);

/* ---- Pooling ----------------------------------------------------------------------------------------------------- */

typedef struct {
  int32_t in_h, in_w, channels, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
  int32_t act_min, act_max;
} orbit_pool;

void orbit_max_pool_s8(const orbit_pool *layer, const int8_t *input, int8_t *output);
void orbit_average_pool_s8(const orbit_pool *layer, const int8_t *input, int8_t *output);

/* Over the middle axis of (outer, count, inner). The multiplier has the division by count in it. */
typedef struct {
  int32_t outer, count, inner;
  int32_t in_zero, out_zero, multiplier, shift;
} orbit_mean;

void orbit_mean_s8(const orbit_mean *layer, const int8_t *input, int8_t *output);

typedef struct {
  int32_t outer, count, inner;
} orbit_reduce;

void orbit_reduce_max_s8(const orbit_reduce *layer, const int8_t *input, int8_t *output);

/* ---- Element by element ------------------------------------------------------------------------------------------ */

/* Two operands are walked through with steps of their own; one that is repeated along an axis has a step of 0 there. */
typedef struct {
  int32_t size[4], step1[4], step2[4];
  int32_t zero1, zero2, out_zero, act_min, act_max;
  int32_t multiplier1, shift1, multiplier2, shift2, multiplier, shift; /* a product has but the last */
} orbit_binary;

void orbit_add_s8(const orbit_binary *layer, const int8_t *input1, const int8_t *input2, int8_t *output);
void orbit_subtract_s8(const orbit_binary *layer, const int8_t *input1, const int8_t *input2, int8_t *output);
void orbit_multiply_s8(const orbit_binary *layer, const int8_t *input1, const int8_t *input2, int8_t *output);

/* Any function of one int8 (or uint8): its values at the bytes 0 to 255. */
typedef struct {
  int32_t size;
  const int8_t *table;
} orbit_lookup;

void orbit_lookup_s8(const orbit_lookup *layer, const int8_t *input, int8_t *output);

/* Differences to the largest of a row below diff_min count as exp() = 0. */
typedef struct {
  int32_t rows, depth;
  int32_t multiplier, shift, diff_min;
} orbit_softmax;

void orbit_softmax_s8(const orbit_softmax *layer, const int8_t *input, int8_t *output);

typedef struct {
  int32_t size;
  float scale;
  int32_t zero;
} orbit_float;

void orbit_quantize_f32(const orbit_float *layer, const float *input, int8_t *output);
void orbit_dequantize_s8(const orbit_float *layer, const int8_t *input, float *output);

/* ---- Moving ------------------------------------------------------------------------------------------------------ */

/* Elements from one walk over memory to another: parts of concatenations, slices, transpositions, images in a frame. */
typedef struct {
  int32_t size[4], in_step[4], out_step[4];
  int32_t in_start, out_start;
} orbit_copy;

void orbit_copy_s8(const orbit_copy *layer, const int8_t *input, int8_t *output);

typedef struct {
  int32_t size, value;
} orbit_fill;

void orbit_fill_s8(const orbit_fill *layer, int8_t *output);

/* rows and columns say which pixel of the input each one of the output is. */
typedef struct {
  int32_t in_w, out_h, out_w, channels;
  const uint16_t *rows, *columns;
} orbit_resize_nearest;

void orbit_resize_nearest_s8(const orbit_resize_nearest *layer, const int8_t *input, int8_t *output);

/* Positions in the input in 1024ths of a pixel: place * scale + start. */
typedef struct {
  int32_t in_h, in_w, out_h, out_w, channels;
  int32_t scale_h, scale_w, start_h, start_w;
} orbit_resize_bilinear;

void orbit_resize_bilinear_s8(const orbit_resize_bilinear *layer, const int8_t *input, int8_t *output);

#endif /* ORBIT_KERNELS_H_ */
