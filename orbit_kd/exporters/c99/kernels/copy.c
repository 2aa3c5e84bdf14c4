/* Elements from one walk over memory to another. */
#include "orbit_kernels.h"

void orbit_copy_s8(const orbit_copy *layer, const int8_t *input, int8_t *output) {
  const int32_t *size = layer->size, *in_step = layer->in_step, *out_step = layer->out_step;
  for (int32_t i = 0; i < size[0]; ++i) {
    for (int32_t j = 0; j < size[1]; ++j) {
      for (int32_t k = 0; k < size[2]; ++k) {
        const int8_t *from = input + layer->in_start + i * in_step[0] + j * in_step[1] + k * in_step[2];
        int8_t *to = output + layer->out_start + i * out_step[0] + j * out_step[1] + k * out_step[2];
        if (in_step[3] == 1 && out_step[3] == 1) {
          memcpy(to, from, (size_t)size[3]);
        } else {
          for (int32_t l = 0; l < size[3]; ++l) to[l * out_step[3]] = from[l * in_step[3]];
        }
      }
    }
  }
}
