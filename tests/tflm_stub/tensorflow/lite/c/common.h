// The part of TFLite Micro's interface that generated code may use, to compile it without TFLite Micro.
// Names and types as in github.com/tensorflow/tflite-micro, tensorflow/lite/c/common.h.
#ifndef STUB_TENSORFLOW_LITE_C_COMMON_H_
#define STUB_TENSORFLOW_LITE_C_COMMON_H_

#include <cstddef>
#include <cstdint>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

struct TfLiteQuantizationParams {
  float scale;
  std::int32_t zero_point;
};

union TfLitePtrUnion {
  char* raw;
  std::int8_t* int8;
  std::int16_t* i16;
};

struct TfLiteTensor {
  TfLiteQuantizationParams params;
  TfLitePtrUnion data;
  std::size_t bytes;
};

#endif  // STUB_TENSORFLOW_LITE_C_COMMON_H_
