// See ../c/common.h.
#ifndef STUB_TENSORFLOW_LITE_MICRO_MICRO_LOG_H_
#define STUB_TENSORFLOW_LITE_MICRO_MICRO_LOG_H_

void MicroPrintf(const char* format, ...) __attribute__((format(printf, 1, 2)));

#endif  // STUB_TENSORFLOW_LITE_MICRO_MICRO_LOG_H_
