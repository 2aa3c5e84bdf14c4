// student_c_array: 179,280 bytes, written by orbit_kd. Do not edit.
#ifndef ORBIT_KD_STUDENT_C_ARRAY_H_
#define ORBIT_KD_STUDENT_C_ARRAY_H_

#include <cstddef>

// A TensorFlow Lite flatbuffer; 16-byte alignment is what TFLite Micro reads it with, in place.
extern const unsigned char student_c_array[];
constexpr std::size_t student_c_array_len = 179280;

#endif  // ORBIT_KD_STUDENT_C_ARRAY_H_
