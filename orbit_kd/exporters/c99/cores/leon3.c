/* LEON3: the serial port, and a timer of GPTIMER, whose ticks stand for 1/40 us. */
#include "core.h"

#define UART_DATA (*(volatile uint32_t *)0x80000100u)
#define UART_STATUS (*(volatile uint32_t *)0x80000104u)
#define UART_CONTROL (*(volatile uint32_t *)0x80000108u)
#define TIMER_SCALER (*(volatile uint32_t *)0x80000300u)
#define TIMER_SCALER_RELOAD (*(volatile uint32_t *)0x80000304u)
#define TIMER_COUNTER (*(volatile uint32_t *)0x80000310u)
#define TIMER_RELOAD (*(volatile uint32_t *)0x80000314u)
#define TIMER_CONTROL (*(volatile uint32_t *)0x80000318u)

void orbit_start(void);
void orbit_main(void);

void orbit_write(const char *text) {
  for (; *text; ++text) {
    while (!(UART_STATUS & 4u)) {
    }
    UART_DATA = (uint32_t)(unsigned char)*text;
  }
}

void orbit_exit(void) {
  for (;;) {
  }
}

uint64_t orbit_ticks(void) {
  return 0xFFFFFFFFu - TIMER_COUNTER;
}

void orbit_main(void) {
  UART_CONTROL = 3;
  TIMER_SCALER_RELOAD = 0;
  TIMER_SCALER = 0;
  TIMER_RELOAD = 0xFFFFFFFFu;
  TIMER_CONTROL = 7;
  orbit_run();
}

__asm__(
    ".section .vectors,\"ax\"\n"
    ".global orbit_start\n"
    "orbit_start:\n"
    "  wr %g0, 0x10c0, %psr\n" /* floating point on, supervisor, traps off: flat code keeps to one window */
    "  nop\n  nop\n  nop\n"
    "  wr %g0, 2, %wim\n"
    "  nop\n  nop\n  nop\n"
    "  set orbit_stack_top - 128, %sp\n"
    "  clr %fp\n"
    "  call orbit_main\n"
    "  nop\n"
    ".text\n");
