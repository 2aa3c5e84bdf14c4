/* Cortex-M: vectors, semihosting, and SysTick as the timer, whose wraps an interrupt counts. */
#include "core.h"

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)
#define PERIOD 0x1000000u

extern uint32_t orbit_stack_top[];
void orbit_start(void);

static volatile uint32_t wraps;

static uint32_t semihost(uint32_t operation, const void *argument) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void orbit_write(const char *text) {
  semihost(0x04, text);
}

void orbit_exit(void) {
  const uint32_t block[2] = {0x20026u, 0u};
  semihost(0x20, block);
  for (;;) {
  }
}

uint64_t orbit_ticks(void) {
  uint32_t before, value;
  do {
    before = wraps;
    value = SYST_CVR;
  } while (before != wraps);
  return (uint64_t)before * PERIOD + (PERIOD - 1u - value);
}

static void tick(void) {
  ++wraps;
}

static void fault(void) {
  orbit_write("\norbit_kd fault\n");
  orbit_exit();
}

void orbit_start(void) {
  CPACR |= 0xFu << 20; /* floating point and vectors, where there are any */
  __asm__ volatile("dsb\n\tisb");
  wraps = 0;
  SYST_RVR = PERIOD - 1u;
  SYST_CVR = 0;
  SYST_CSR = 7;
  orbit_run();
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))orbit_stack_top, orbit_start, fault, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0,
    fault, tick};
