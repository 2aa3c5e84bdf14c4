/* One value everywhere: the frame that a padded image is put into. */
#include "orbit_kernels.h"

void orbit_fill_s8(const orbit_fill *layer, int8_t *output) {
  memset(output, (int)layer->value, (size_t)layer->size);
}
