/* Softmax over rows, in fixed point: Qm.n is a number of 1 + m + n bits, n of them after the point. */
#include "orbit_kernels.h"

/* x * 2^bits, saturated. */
static int32_t orbit_softmax_shift_left(int32_t x, int32_t bits) {
  const int64_t wide = (int64_t)x * ((int64_t)1 << bits);
  return wide > INT32_MAX ? INT32_MAX : wide < INT32_MIN ? INT32_MIN : (int32_t)wide;
}

/* exp(x) in Q0.31 for x <= 0 in Q5.26. */
static int32_t orbit_softmax_exp(int32_t x) {
  /* exp(-2^i), i = -2 to 4, in Q0.31 */
  static const int32_t powers[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
  const int32_t quarter = 1 << 24;
  int32_t rest, a, a2, a3, a4, series, result;
  uint32_t quarters;
  if (x == 0) return INT32_MAX;
  /* x = rest - a multiple of 1/4, rest in [-1/4, 0); a series for exp(rest) around -1/8 */
  rest = (int32_t)((uint32_t)x & (uint32_t)(quarter - 1)) - quarter;
  quarters = (uint32_t)rest - (uint32_t)x;
  a = orbit_softmax_shift_left(rest, 5) + (1 << 28);
  a2 = orbit_multiply_high(a, a);
  a3 = orbit_multiply_high(a2, a);
  a4 = orbit_round_shift_right(orbit_multiply_high(a2, a2), 2);
  series = orbit_round_shift_right(orbit_multiply_high(a4 + a3, 715827883) + a2, 1); /* (a^4 / 4 + a^3) / 3 + a^2 */
  result = 1895147668 + orbit_multiply_high(1895147668, a + series);                /* exp(-1/8) (1 + ...) */
  for (int32_t i = 0; i < 7; ++i) {
    if (quarters & ((uint32_t)1 << (24 + i))) result = orbit_multiply_high(result, powers[i]);
  }
  return result;
}

/* 1 / (1 + x) in Q0.31 for x in [0, 1), in Q0.31: three steps of Newton's method. */
static int32_t orbit_softmax_reciprocal(int32_t x) {
  const int32_t half = (int32_t)(((int64_t)x + INT32_MAX + 1) / 2);                  /* (1 + x) / 2 */
  int32_t guess = 1515870810 + orbit_multiply_high(half, -1010580540);               /* 48/17 - 32/17 half, Q2.29 */
  for (int32_t i = 0; i < 3; ++i) {
    const int32_t error = (1 << 29) - orbit_multiply_high(half, guess);
    guess += orbit_softmax_shift_left(orbit_multiply_high(guess, error), 2);
  }
  return orbit_softmax_shift_left(guess, 1);
}

void orbit_softmax_s8(const orbit_softmax *layer, const int8_t *input, int8_t *output) {
  for (int32_t row = 0; row < layer->rows; ++row) {
    int32_t most = INT8_MIN, sum = 0, scale;
    int32_t zeros = 4; /* of the sum: at most 511 values, each up to 2^19 */
    for (int32_t i = 0; i < layer->depth; ++i) most = input[i] > most ? input[i] : most;
    for (int32_t i = 0; i < layer->depth; ++i) {
      const int32_t diff = input[i] - most;
      if (diff >= layer->diff_min) {
        const int32_t x = orbit_requantize(diff, layer->multiplier, layer->shift);
        sum += orbit_round_shift_right(orbit_softmax_exp(x), 12); /* Q12.19 */
      }
    }
    while (zeros < 12 && !((uint32_t)sum & ((uint32_t)1 << (31 - zeros)))) ++zeros; /* the largest alone counts 2^19 */
    scale = orbit_softmax_reciprocal((int32_t)(((uint32_t)sum << zeros) - ((uint32_t)1 << 31)));
    for (int32_t i = 0; i < layer->depth; ++i) {
      const int32_t diff = input[i] - most;
      int32_t value = INT8_MIN;
      if (diff >= layer->diff_min) {
        const int32_t x = orbit_requantize(diff, layer->multiplier, layer->shift);
        const int32_t part = orbit_multiply_high(scale, orbit_softmax_exp(x));
        value += orbit_round_shift_right(part, 12 - zeros + 31 - 8);
      }
      output[i] = (int8_t)orbit_clamp(value, INT8_MIN, INT8_MAX);
    }
    input += layer->depth;
    output += layer->depth;
  }
}
