/* What a core brings to run a program and count its instructions. */
#ifndef ORBIT_CORE_H_
#define ORBIT_CORE_H_

#include <stddef.h>
#include <stdint.h>

void orbit_run(void);                /* measure.c: called when there is a stack */
uint64_t orbit_ticks(void);          /* of a timer that advances with instructions */
void orbit_write(const char *text);  /* to whoever started the emulator */
void orbit_exit(void);               /* ends the emulator where it can, else stops */

#endif /* ORBIT_CORE_H_ */
