/* Finds and undoes flipped bits in a file, by the guard beside it (orbit_kd.flight.guard has the format).
   C99, no library, no allocation, no state but the struct below; reentrant. */
#ifndef ORBIT_SCRUB_H
#define ORBIT_SCRUB_H

#include <stdint.h>

typedef struct {
  uint8_t *file;        /* as it lies in memory; repaired in place */
  const uint8_t *guard; /* may be damaged too */
  uint32_t file_size, guard_size;
  uint32_t table_size, sections;
  uint32_t word_at; /* which eight bytes of the table are in `word`, plus one */
  uint8_t word[8];
} orbit_scrub;

/* 0 when the guard is of a file of this size and its table can be read; -1 otherwise. Call it first. */
int orbit_scrub_open(orbit_scrub *scrub, uint8_t *file, uint32_t file_size, const uint8_t *guard, uint32_t guard_size);

/* Number of sections that are not as they were. The file is not changed. */
uint32_t orbit_scrub_verify(orbit_scrub *scrub);

/* Repairs the file; number of sections that are still not as they were: 0 when all is well. */
uint32_t orbit_scrub_repair(orbit_scrub *scrub);

#endif
