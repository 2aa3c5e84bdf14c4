/* Runs main() once and says what it took: "orbit_kd CODE TICKS STACK", the exit code, timer ticks and bytes of stack. */
#include "core.h"

#define PAINT 0xA5A5A5A5u
#define STACK_WORDS 16384u /* painted below the top: 64 KB */
#define OWN_WORDS 48       /* of this function's frame, left alone and not counted */

extern uint32_t orbit_data[], orbit_data_end[], orbit_data_load[], orbit_bss[], orbit_bss_end[], orbit_stack_top[];
extern int main(void);

static void write_number(uint64_t value) {
  char digits[24];
  int at = 24;
  digits[--at] = 0;
  do {
    digits[--at] = (char)('0' + value % 10u);
    value /= 10u;
  } while (value);
  orbit_write(digits + at);
}

void orbit_run(void) {
  uint32_t *const stack = orbit_stack_top - STACK_WORDS;
  uint32_t *const limit = (uint32_t *)__builtin_frame_address(0) - OWN_WORDS;
  uint32_t volatile *word;
  uint64_t start, ticks;
  uint32_t i, used = (uint32_t)(limit - stack);
  int code;
  for (i = 0; orbit_data + i < orbit_data_end; ++i) orbit_data[i] = orbit_data_load[i];
  for (word = orbit_bss; word < orbit_bss_end; ++word) *word = 0;
  for (word = stack; word < limit; ++word) *word = PAINT;
  start = orbit_ticks();
  code = main();
  ticks = orbit_ticks() - start;
  for (word = stack; word < limit && *word == PAINT; ++word) --used;
  orbit_write("\norbit_kd ");
  write_number((uint64_t)(code == 0 ? 0 : 1));
  orbit_write(" ");
  write_number(ticks);
  orbit_write(" ");
  write_number(4u * (uint64_t)used);
  orbit_write("\n");
  orbit_exit();
}
