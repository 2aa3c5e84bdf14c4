/* Of memory.c. */
#ifndef ORBIT_STRING_H_
#define ORBIT_STRING_H_

#include <stddef.h>

void *memcpy(void *to, const void *from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
int memcmp(const void *first, const void *second, size_t count);

#endif /* ORBIT_STRING_H_ */
