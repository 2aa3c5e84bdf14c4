/* The four functions of string.h that C compilers count on, for a core whose toolchain here has no library for it. */
#include <string.h>

void *memcpy(void *to, const void *from, size_t count) {
  unsigned char *out = (unsigned char *)to;
  const unsigned char *in = (const unsigned char *)from;
  while (count--) *out++ = *in++;
  return to;
}

void *memmove(void *to, const void *from, size_t count) {
  unsigned char *out = (unsigned char *)to;
  const unsigned char *in = (const unsigned char *)from;
  if (out < in) return memcpy(to, from, count);
  while (count--) out[count] = in[count];
  return to;
}

void *memset(void *to, int value, size_t count) {
  unsigned char *out = (unsigned char *)to;
  while (count--) *out++ = (unsigned char)value;
  return to;
}

int memcmp(const void *first, const void *second, size_t count) {
  const unsigned char *a = (const unsigned char *)first, *b = (const unsigned char *)second;
  for (; count--; ++a, ++b) {
    if (*a != *b) return *a - *b;
  }
  return 0;
}
