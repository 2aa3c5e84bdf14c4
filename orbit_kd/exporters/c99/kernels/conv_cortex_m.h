/* conv_lanes.h for Cortex-M3 and up, little-endian.
 *
 * The eight sums fill the registers, so that loops over weights are written in assembly, and what they need once a place
 * of the kernel stays in memory. With the DSP extension, where SMLAL takes one cycle, two pixels four apart share a word
 * and two sums share 64 bits: (a + b * 2^23) * w = a * w + b * w * 2^23. The lower sum must stay within +-2^22 until
 * `orbit_lanes_flush`, which the packer sees to.
 */
#ifndef ORBIT_CONV_CORTEX_M_H_
#define ORBIT_CONV_CORTEX_M_H_

#include "conv_rows.h"

/* Operands of all loops: temporaries, a weight, where its columns begin, the weights; loop counts rounds in its upper
   half, and its lower half is a step. Each `ORBIT_DO_STEP` goes on by t steps. */
#define ORBIT_DO_ROUND_END(label)             \
  "subs %[loop], %[loop], #0x10000\n\t"       \
  "bhs " label "b\n\t"
#define ORBIT_DO_PLACE                 \
  "ldr %[t], %[place]\n\t"             \
  "2:\n\t"                             \
  "ldr %[x], [%[t]], #4\n\t"           \
  "str %[t], %[place]\n\t" ORBIT_DO_LOAD_STEP
#define ORBIT_DO_PLACE_END             \
  "ldr %[t], %[place]\n\t"             \
  "ldr %[w], %[end]\n\t"               \
  "cmp %[t], %[w]\n\t"                 \
  "bne 2b\n\t"

#if defined(__ARM_FEATURE_DSP)

#define ORBIT_LANE_BYTES 4 /* of a channel and column in a row */
typedef struct {
  int32_t sums[ORBIT_LANES];
  int64_t pairs[ORBIT_LANES / 2]; /* of the lanes i and i + 4 */
} orbit_lanes;

/* int32 [channel][column]: the column, and the one four columns on */
ORBIT_APART void orbit_fill_lanes(const orbit_conv *layer, const orbit_rows *rows, const int8_t *line,
                                                void *row) {
  int32_t column, c;
  for (column = 0; column < rows->columns; ++column) {
    const int8_t zero = (int8_t)layer->in_zero;
    const int8_t *pixel = orbit_column(layer, rows, line, column);
    const int8_t *other = orbit_column(layer, rows, line, orbit_min_of(column + 4, rows->columns - 1));
    const int32_t pixel_step = pixel != NULL, other_step = other != NULL;
    int32_t *out = (int32_t *)row + column;
    if (pixel == NULL) pixel = &zero;
    if (other == NULL) other = &zero;
    for (c = layer->in_c; c > 0; --c, out += rows->columns, pixel += pixel_step, other += other_step) {
      *out = *pixel + *other * (1 << 23);
    }
  }
}

/* Sums of nothing. One by one: compilers make a call of a loop. */
static inline void orbit_lanes_start(orbit_lanes *lanes) {
  int32_t *const s = lanes->sums;
  s[0] = s[1] = s[2] = s[3] = s[4] = s[5] = s[6] = s[7] = 0;
  lanes->pairs[0] = lanes->pairs[1] = lanes->pairs[2] = lanes->pairs[3] = 0;
}

/* Adds two sums that share 64 bits to those of their lanes. */
static inline void orbit_pair_end(const orbit_lanes *lanes, int32_t lane, int32_t *sums) {
  const int64_t pair = lanes->pairs[lane];
  sums[lane] = lanes->sums[lane] + ((int32_t)((uint32_t)pair << 9) >> 9);
  sums[lane + 4] = lanes->sums[lane + 4] + (int32_t)((pair + (1 << 22)) >> 23);
}

static inline void orbit_lanes_end(const orbit_lanes *lanes, int32_t *sums) {
  orbit_pair_end(lanes, 0, sums);
  orbit_pair_end(lanes, 1, sums);
  orbit_pair_end(lanes, 2, sums);
  orbit_pair_end(lanes, 3, sums);
}

static inline void orbit_lanes_flush(orbit_lanes *lanes) {
  orbit_lanes_end(lanes, lanes->sums);
  lanes->pairs[0] = lanes->pairs[1] = lanes->pairs[2] = lanes->pairs[3] = 0;
}

#define ORBIT_SUMS_OF(lanes) "+r"((lanes)->pairs[0]), "+r"((lanes)->pairs[1]), "+r"((lanes)->pairs[2]), \
                             "+r"((lanes)->pairs[3])
#define ORBIT_DO_LOAD_STEP
#define ORBIT_DO_STEP "smlabb %[x], %[t], %[loop], %[x]\n\t"
#define ORBIT_DO_ONE_STEP "uxtah %[x], %[x], %[loop]\n\t"
#define ORBIT_DO_ADD                   \
  "ldrd %[t], %[u], [%[x]]\n\t"        \
  "smlal %Q0, %R0, %[t], %[w]\n\t"     \
  "smlal %Q1, %R1, %[u], %[w]\n\t"     \
  "ldrd %[t], %[u], [%[x], #8]\n\t"    \
  "smlal %Q2, %R2, %[t], %[w]\n\t"     \
  "smlal %Q3, %R3, %[u], %[w]\n\t"
#define ORBIT_DO_THREE                 \
  "ldr %[t], [%[x]]\n\t"               \
  "smlal %Q0, %R0, %[t], %[w]\n\t"     \
  "ldr %[t], [%[x], #4]\n\t"           \
  "smlal %Q0, %R0, %[t], %[v]\n\t"     \
  "smlal %Q1, %R1, %[t], %[w]\n\t"     \
  "ldr %[t], [%[x], #8]\n\t"           \
  "smlal %Q0, %R0, %[t], %[u]\n\t"     \
  "smlal %Q1, %R1, %[t], %[v]\n\t"     \
  "smlal %Q2, %R2, %[t], %[w]\n\t"     \
  "ldr %[t], [%[x], #12]\n\t"          \
  "smlal %Q1, %R1, %[t], %[u]\n\t"     \
  "smlal %Q2, %R2, %[t], %[v]\n\t"     \
  "smlal %Q3, %R3, %[t], %[w]\n\t"     \
  "ldr %[t], [%[x], #16]\n\t"          \
  "smlal %Q2, %R2, %[t], %[u]\n\t"     \
  "smlal %Q3, %R3, %[t], %[v]\n\t"     \
  "ldr %[t], [%[x], #20]\n\t"          \
  "smlal %Q3, %R3, %[t], %[u]\n\t"

#else

#define ORBIT_LANE_BYTES 1
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
  (void)lanes;
}

static inline void orbit_lanes_end(const orbit_lanes *lanes, int32_t *sums) {
  int32_t i;
  for (i = 0; i < ORBIT_LANES; ++i) sums[i] = lanes->sums[i];
}

#define ORBIT_SUMS_OF(lanes)                                                                                       \
  "+r"((lanes)->sums[0]), "+r"((lanes)->sums[1]), "+r"((lanes)->sums[2]), "+r"((lanes)->sums[3]),                  \
      "+r"((lanes)->sums[4]), "+r"((lanes)->sums[5]), "+r"((lanes)->sums[6]), "+r"((lanes)->sums[7])
#define ORBIT_DO_LOAD_STEP "ldr %[u], %[step]\n\t"
#define ORBIT_DO_STEP "mla %[x], %[t], %[u], %[x]\n\t"
#define ORBIT_DO_ONE_STEP "add %[x], %[x], %[u]\n\t"
#define ORBIT_DO_LANE(lane, offset)          \
  "ldrsb %[t], [%[x], #" offset "]\n\t"      \
  "mla %" lane ", %[t], %[w], %" lane "\n\t"
#define ORBIT_DO_ADD                                                                                   \
  ORBIT_DO_LANE("0", "0") ORBIT_DO_LANE("1", "1") ORBIT_DO_LANE("2", "2") ORBIT_DO_LANE("3", "3")      \
  ORBIT_DO_LANE("4", "4") ORBIT_DO_LANE("5", "5") ORBIT_DO_LANE("6", "6") ORBIT_DO_LANE("7", "7")
#define ORBIT_DO_MLA(lane, weight) "mla %" lane ", %[t], %[" weight "], %" lane "\n\t"
#define ORBIT_DO_COLUMN(offset) "ldrsb %[t], [%[x], #" offset "]\n\t"
#define ORBIT_DO_THREE                                                                                             \
  ORBIT_DO_COLUMN("0") ORBIT_DO_MLA("0", "w")                                                                      \
  ORBIT_DO_COLUMN("1") ORBIT_DO_MLA("0", "v") ORBIT_DO_MLA("1", "w")                                               \
  ORBIT_DO_COLUMN("2") ORBIT_DO_MLA("0", "u") ORBIT_DO_MLA("1", "v") ORBIT_DO_MLA("2", "w")                        \
  ORBIT_DO_COLUMN("3") ORBIT_DO_MLA("1", "u") ORBIT_DO_MLA("2", "v") ORBIT_DO_MLA("3", "w")                        \
  ORBIT_DO_COLUMN("4") ORBIT_DO_MLA("2", "u") ORBIT_DO_MLA("3", "v") ORBIT_DO_MLA("4", "w")                        \
  ORBIT_DO_COLUMN("5") ORBIT_DO_MLA("3", "u") ORBIT_DO_MLA("4", "v") ORBIT_DO_MLA("5", "w")                        \
  ORBIT_DO_COLUMN("6") ORBIT_DO_MLA("4", "u") ORBIT_DO_MLA("5", "v") ORBIT_DO_MLA("6", "w")                        \
  ORBIT_DO_COLUMN("7") ORBIT_DO_MLA("5", "u") ORBIT_DO_MLA("6", "v") ORBIT_DO_MLA("7", "w")                        \
  ORBIT_DO_COLUMN("8") ORBIT_DO_MLA("6", "u") ORBIT_DO_MLA("7", "v")                                               \
  ORBIT_DO_COLUMN("9") ORBIT_DO_MLA("7", "u")

#endif

#define ORBIT_DO_ENTRY                 \
  "ldrb %[t], [%[e]], #2\n\t"          \
  "ldrsb %[w], [%[e], #-1]\n\t" ORBIT_DO_STEP ORBIT_DO_ADD
#define ORBIT_DO_SHORT_ENTRIES         \
  "1:\n\t"                             \
  "ldrb %[t], [%[e], #2]\n\t"          \
  "ldrsb %[w], [%[e]], #3\n\t"         \
  "and %[t], %[t], #15\n\t" ORBIT_DO_STEP ORBIT_DO_ADD \
  "ldrb %[t], [%[e], #-1]\n\t"         \
  "ldrsb %[w], [%[e], #-2]\n\t"        \
  "lsr %[t], %[t], #4\n\t" ORBIT_DO_STEP ORBIT_DO_ADD ORBIT_DO_ROUND_END("1")
#define ORBIT_TEMPORARIES [t] "=&r"(t), [u] "=&r"(u), [w] "=&r"(w)

/* One weight for the eight columns from x on. */
static inline void orbit_lanes_add(orbit_lanes *lanes, const int8_t *x, int32_t weight) {
  int32_t t, u;
  __asm__ volatile(ORBIT_DO_ADD
                   : ORBIT_SUMS_OF(lanes), [t] "=&r"(t), [u] "=&r"(u)
                   : [x] "r"(x), [w] "r"(weight)
                   : "memory");
}

/* `count` entries; returns their end. */
static inline const int8_t *orbit_lanes_run(orbit_lanes *lanes, const int8_t *entries, int32_t count, const int8_t *x,
                                            int32_t step) {
  int32_t t, u, w, loop = step | (int32_t)((uint32_t)(count - 1) << 16);
  if (count > 0) {
    __asm__ volatile(ORBIT_DO_LOAD_STEP "1:\n\t" ORBIT_DO_ENTRY ORBIT_DO_ROUND_END("1")
                     : ORBIT_SUMS_OF(lanes), ORBIT_TEMPORARIES, [x] "+r"(x), [e] "+r"(entries), [loop] "+r"(loop)
                     : [step] "m"(step)
                     : "memory", "cc");
  }
  return entries;
}

/* At each place of the kernel a count in one byte and that many entries; returns their end. */
static inline const int8_t *orbit_lanes_counted(orbit_lanes *lanes, const int8_t *entries, const orbit_rows *rows) {
  const int8_t **place = rows->place, **const end = rows->end;
  const int32_t step = rows->step;
  const int8_t *x;
  int32_t t, u, w, loop;
  /* an odd entry first, then two a round */
  __asm__ volatile(ORBIT_DO_PLACE
                   "ldrb %[t], [%[e]], #1\n\t"
                   "ldr %[loop], %[step]\n\t"
                   "lsr %[w], %[t], #1\n\t"
                   "orr %[loop], %[loop], %[w], lsl #16\n\t"
                   "lsls %[t], %[t], #31\n\t"
                   "beq 3f\n\t" ORBIT_DO_ENTRY
                   "3:\n\t"
                   "subs %[loop], %[loop], #0x10000\n\t"
                   "blo 4f\n\t"
                   "1:\n\t" ORBIT_DO_ENTRY ORBIT_DO_ENTRY ORBIT_DO_ROUND_END("1")
                   "4:\n\t" ORBIT_DO_PLACE_END
                   : ORBIT_SUMS_OF(lanes), ORBIT_TEMPORARIES, [x] "=&r"(x), [e] "+r"(entries), [loop] "=&r"(loop),
                     [place] "+m"(place)
                   : [end] "m"(end), [step] "m"(step)
                   : "memory", "cc");
  return entries;
}

/* At each place of the kernel `count` short entries; returns their end. */
static inline const int8_t *orbit_lanes_short(orbit_lanes *lanes, const int8_t *entries, const orbit_rows *rows,
                                              int32_t count) {
  const int8_t **place = rows->place, **const end = rows->end;
  const int32_t step = rows->step, first = step | (int32_t)(((uint32_t)count / 2u - 1u) << 16);
  const int8_t *x;
  int32_t t, u, w, loop;
#define ORBIT_SHORT(body)                                                                                          \
  __asm__ volatile(ORBIT_DO_PLACE "ldr %[loop], %[first]\n\t" body ORBIT_DO_PLACE_END                              \
                   : ORBIT_SUMS_OF(lanes), ORBIT_TEMPORARIES, [x] "=&r"(x), [e] "+r"(entries), [loop] "=&r"(loop), \
                     [place] "+m"(place)                                                                           \
                   : [end] "m"(end), [step] "m"(step), [first] "m"(first)                                          \
                   : "memory", "cc")
  if (count == 1) {
    ORBIT_SHORT(ORBIT_DO_ENTRY);
  } else if (count & 1) {
    ORBIT_SHORT(ORBIT_DO_SHORT_ENTRIES ORBIT_DO_ENTRY);
  } else {
    ORBIT_SHORT(ORBIT_DO_SHORT_ENTRIES);
  }
#undef ORBIT_SHORT
  return entries;
}

/* All weights of `channels` input channels at one place; returns their end. */
static inline const int8_t *orbit_lanes_all(orbit_lanes *lanes, const int8_t *weights, int32_t channels,
                                            const int8_t *x, int32_t step) {
  int32_t t, u, w, loop = step | (int32_t)((uint32_t)(channels / 2) << 16);
#define ORBIT_DO_ONE "ldrsb %[w], [%[e]], #1\n\t" ORBIT_DO_ADD ORBIT_DO_ONE_STEP
  /* an odd channel first, then two a round */
  __asm__ volatile(ORBIT_DO_LOAD_STEP
                   "ldr %[t], %[odd]\n\t"
                   "tst %[t], #1\n\t"
                   "beq 3f\n\t" ORBIT_DO_ONE
                   "3:\n\t"
                   "subs %[loop], %[loop], #0x10000\n\t"
                   "blo 4f\n\t"
                   "1:\n\t" ORBIT_DO_ONE ORBIT_DO_ONE ORBIT_DO_ROUND_END("1")
                   "4:\n\t"
                   : ORBIT_SUMS_OF(lanes), ORBIT_TEMPORARIES, [x] "+r"(x), [e] "+r"(weights), [loop] "+r"(loop)
                   : [step] "m"(step), [odd] "m"(channels)
                   : "memory", "cc");
#undef ORBIT_DO_ONE
  return weights;
}

/* 3 x 3 weights whose columns are neighbours, of each of `count` input channels; returns their end. With `indexed` the
   steps to its channel stand before each channel's weights, else channels follow one another. */
static inline const int8_t *orbit_lanes_nines(orbit_lanes *lanes, const int8_t *weights, int32_t count, int indexed,
                                              const orbit_rows *rows, int32_t *offset) {
  const int32_t step = rows->step;
  const int8_t *x = rows->place[0] + *offset;
  const int32_t second = (int32_t)(rows->place[3] - rows->place[0]);
  const int32_t third = (int32_t)(rows->place[6] - rows->place[3]);
  const int32_t back = (indexed ? 0 : step) - second - third;
  const int8_t *const end = weights + count * (indexed ? 10 : 9);
  int32_t t, u, v, w;
  if (count == 0) return weights;
#define ORBIT_DO_WEIGHTS            \
  "ldrsb %[w], [%[e]], #3\n\t"      \
  "ldrsb %[v], [%[e], #-2]\n\t"     \
  "ldrsb %[u], [%[e], #-1]\n\t"
#define ORBIT_DO_GO(distance)       \
  "ldr %[t], %[" distance "]\n\t"   \
  "add %[x], %[x], %[t]\n\t"
#define ORBIT_NINES(index)                                                                                         \
  __asm__ volatile("1:\n\t" index ORBIT_DO_WEIGHTS ORBIT_DO_THREE ORBIT_DO_GO("second")                            \
                   ORBIT_DO_WEIGHTS ORBIT_DO_THREE ORBIT_DO_GO("third")                                            \
                   ORBIT_DO_WEIGHTS ORBIT_DO_THREE ORBIT_DO_GO("back")                                             \
                   "ldr %[t], %[end]\n\t"                                                                          \
                   "cmp %[e], %[t]\n\t"                                                                            \
                   "bne 1b"                                                                                        \
                   : ORBIT_SUMS_OF(lanes), ORBIT_TEMPORARIES, [v] "=&r"(v), [x] "+r"(x), [e] "+r"(weights)         \
                   : [second] "m"(second), [third] "m"(third), [back] "m"(back), [step] "m"(step), [end] "m"(end)  \
                   : "memory", "cc")
  if (indexed) {
    ORBIT_NINES("ldrb %[w], [%[e]], #1\n\t"
                "ldr %[t], %[step]\n\t"
                "mla %[x], %[w], %[t], %[x]\n\t");
  } else {
    ORBIT_NINES("");
  }
#undef ORBIT_NINES
#undef ORBIT_DO_GO
#undef ORBIT_DO_WEIGHTS
  *offset = (int32_t)(x - rows->place[0]);
  return weights;
}

#endif /* ORBIT_CONV_CORTEX_M_H_ */
