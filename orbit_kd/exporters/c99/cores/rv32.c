/* RISC-V: semihosting, and the counter of retired instructions as the timer. */
#include "core.h"

void orbit_start(void);

static uintptr_t semihost(uintptr_t operation, const void *argument) {
  register uintptr_t a0 __asm__("a0") = operation;
  register const void *a1 __asm__("a1") = argument;
  __asm__ volatile(
      ".option push\n\t.option norvc\n\t.balign 16\n\t"
      "slli x0, x0, 0x1f\n\tebreak\n\tsrai x0, x0, 7\n\t.option pop"
      : "+r"(a0)
      : "r"(a1)
      : "memory");
  return a0;
}

void orbit_write(const char *text) {
  semihost(0x04, text);
}

void orbit_exit(void) {
  const uintptr_t block[2] = {0x20026u, 0u};
  semihost(0x20, block);
  for (;;) {
  }
}

uint64_t orbit_ticks(void) {
  uint32_t high, low, again;
  do {
    __asm__ volatile(
        ".option push\n\t.option arch, +zicsr\n\t"
        "csrr %0, minstreth\n\tcsrr %1, minstret\n\tcsrr %2, minstreth\n\t.option pop"
        : "=&r"(high), "=&r"(low), "=&r"(again));
  } while (high != again);
  return (uint64_t)high << 32 | low;
}

__attribute__((naked, section(".vectors"))) void orbit_start(void) {
  __asm__ volatile(
      ".option push\n\t.option norelax\n\tla sp, orbit_stack_top\n\t.option pop\n\t"
      "andi sp, sp, -16\n\tj orbit_run");
}
