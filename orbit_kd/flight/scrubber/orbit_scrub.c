#include "orbit_scrub.h"

#include <stddef.h>

enum { CHECK = 1, COPIES = 2, SECDED = 3, WORD = 8, HEAD = 12, SECTION = 16, RANGE = 8 };

/* Check byte of each of the 64 bits of a word: all bytes with three ones in rising order of their places, then five. */
static uint8_t column(uint32_t bit) {
  uint32_t seen = 0;
  for (uint32_t ones = 3; ones <= 5; ones += 2) {
    /* combinations of places in lexicographic order, as Python's itertools gives them */
    uint32_t at[5];
    for (uint32_t i = 0; i < ones; ++i) at[i] = i;
    for (;;) {
      if (seen++ == bit) {
        uint32_t sum = 0;
        for (uint32_t i = 0; i < ones; ++i) sum |= 1u << at[i];
        return (uint8_t)sum;
      }
      uint32_t i = ones;
      while (i > 0 && at[i - 1] == 8 - ones + (i - 1)) --i;
      if (i == 0) break;
      ++at[i - 1];
      for (uint32_t j = i; j < ones; ++j) at[j] = at[j - 1] + 1;
    }
  }
  return 0;
}

static uint8_t majority(uint8_t a, uint8_t b, uint8_t c) { return (uint8_t)((a & b) | (a & c) | (b & c)); }

/* Corrects one flipped bit of a word and its check byte. */
static void correct(uint8_t word[WORD], uint8_t check, const uint8_t columns[64]) {
  uint8_t syndrome = check;
  for (uint32_t bit = 0; bit < 64; ++bit)
    if ((word[bit >> 3] >> (bit & 7)) & 1) syndrome = (uint8_t)(syndrome ^ columns[bit]);
  if (syndrome == 0) return;
  for (uint32_t bit = 0; bit < 64; ++bit)
    if (columns[bit] == syndrome) {
      word[bit >> 3] = (uint8_t)(word[bit >> 3] ^ (1u << (bit & 7)));
      return;
    }
}

static void fill(uint8_t columns[64]) {
  for (uint32_t bit = 0; bit < 64; ++bit) columns[bit] = column(bit);
}

static uint32_t crc_step(uint32_t crc, uint8_t byte) {
  crc ^= byte;
  for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
  return crc;
}

static uint32_t checks_of(uint32_t size) { return (size + WORD - 1) / WORD; }

/* A byte of the table, by majority and code. */
static uint8_t table_byte(orbit_scrub *s, uint32_t at) {
  uint32_t const word = at / WORD;
  if (s->word_at != word + 1) {
    uint32_t const each = s->table_size + checks_of(s->table_size);
    const uint8_t *const first = s->guard + HEAD;
    uint8_t columns[64];
    fill(columns);
    for (uint32_t i = 0; i < WORD; ++i) {
      uint32_t const place = word * WORD + i;
      s->word[i] = place < s->table_size ? majority(first[place], first[each + place], first[2 * each + place]) : 0;
    }
    uint32_t const check = s->table_size + word;
    correct(s->word, majority(first[check], first[each + check], first[2 * each + check]), columns);
    s->word_at = word + 1;
  }
  return s->word[at % WORD];
}

static uint32_t table_number(orbit_scrub *s, uint32_t at) {
  uint32_t number = 0;
  for (uint32_t i = 0; i < 4; ++i) number |= (uint32_t)table_byte(s, at + i) << (8 * i);
  return number;
}

int orbit_scrub_open(orbit_scrub *s, uint8_t *file, uint32_t file_size, const uint8_t *guard, uint32_t guard_size) {
  s->file = file;
  s->guard = guard;
  s->file_size = file_size;
  s->guard_size = guard_size;
  s->word_at = 0;
  s->sections = 0;
  if (guard_size < HEAD) return -1;
  uint32_t size = 0;
  for (uint32_t i = 0; i < 4; ++i) size |= (uint32_t)majority(guard[i], guard[4 + i], guard[8 + i]) << (8 * i);
  if (size <= HEAD + 4 || size >= (1u << 24) || (guard_size - HEAD) / 3 < size + checks_of(size)) return -1;
  s->table_size = size;
  uint32_t crc = 0xffffffffu;
  for (uint32_t i = 0; i < size - 4; ++i) crc = crc_step(crc, table_byte(s, i));
  if ((crc ^ 0xffffffffu) != table_number(s, size - 4)) return -1;
  if (table_number(s, 0) != 0x31474b4fu || table_number(s, 4) != file_size) return -1; /* "OKG1" */
  uint32_t const count = table_number(s, 8);
  uint32_t at = HEAD;
  for (uint32_t i = 0; i < count; ++i) {
    if (size - 4 - at < SECTION) return -1;
    uint32_t const kind = table_number(s, at), ranges = table_number(s, at + 4), offset = table_number(s, at + 8);
    at += SECTION;
    if (kind < CHECK || kind > SECDED || ranges == 0 || ranges > (size - 4 - at) / RANGE) return -1;
    uint32_t bytes = 0;
    for (uint32_t r = 0; r < ranges; ++r, at += RANGE) {
      uint32_t const start = table_number(s, at), length = table_number(s, at + 4);
      if (length == 0 || start > file_size || length > file_size - start || length > UINT32_MAX - bytes) return -1;
      bytes += length;
    }
    uint32_t const needed = kind == SECDED ? checks_of(bytes) : bytes;
    if (kind != CHECK && (offset > guard_size || needed > guard_size - offset)) return -1;
    if (kind == COPIES && bytes > guard_size - offset - bytes) return -1;
  }
  s->sections = count;
  return 0;
}

/* Goes through the bytes of a section, wherever they lie. */
typedef struct {
  uint32_t at, left;      /* next range in the table, ranges left */
  uint32_t place, length; /* next byte of the file, bytes left in this range */
} cursor;

static uint8_t *next(orbit_scrub *s, cursor *c) {
  if (c->length == 0) {
    if (c->left == 0) return NULL;
    c->place = table_number(s, c->at);
    c->length = table_number(s, c->at + 4);
    c->at += RANGE;
    --c->left;
  }
  --c->length;
  return s->file + c->place++;
}

static int is_whole(orbit_scrub *s, cursor c, uint32_t expected) {
  uint32_t crc = 0xffffffffu;
  for (const uint8_t *byte = next(s, &c); byte; byte = next(s, &c)) crc = crc_step(crc, *byte);
  return (crc ^ 0xffffffffu) == expected;
}

static uint32_t size_of(orbit_scrub *s, cursor c) {
  uint32_t size = 0;
  for (; c.left > 0; --c.left, c.at += RANGE) size += table_number(s, c.at + 4);
  return size;
}

static void mend(orbit_scrub *s, uint32_t kind, cursor c, const uint8_t *payload) {
  if (kind == COPIES) {
    uint32_t const size = size_of(s, c);
    for (uint32_t i = 0; i < size; ++i) {
      uint8_t *const byte = next(s, &c);
      *byte = majority(*byte, payload[i], payload[size + i]);
    }
  } else if (kind == SECDED) {
    uint8_t columns[64];
    fill(columns);
    for (;; ++payload) {
      uint8_t *bytes[WORD], word[WORD] = {0};
      uint32_t count = 0;
      while (count < WORD && (bytes[count] = next(s, &c)) != NULL) {
        word[count] = *bytes[count];
        ++count;
      }
      if (count == 0) return;
      correct(word, *payload, columns);
      for (uint32_t i = 0; i < count; ++i) *bytes[i] = word[i];
    }
  }
}

static uint32_t go_through(orbit_scrub *s, int repair) {
  uint32_t damaged = 0, at = HEAD;
  for (uint32_t i = 0; i < s->sections; ++i) {
    uint32_t const kind = table_number(s, at), ranges = table_number(s, at + 4), offset = table_number(s, at + 8);
    uint32_t const crc = table_number(s, at + 12);
    cursor const c = {at + SECTION, ranges, 0, 0};
    at += SECTION + ranges * RANGE;
    if (is_whole(s, c, crc)) continue;
    if (repair) mend(s, kind, c, s->guard + offset);
    else ++damaged;
  }
  return damaged;
}

uint32_t orbit_scrub_verify(orbit_scrub *s) { return go_through(s, 0); }

uint32_t orbit_scrub_repair(orbit_scrub *s) {
  (void)go_through(s, 1);
  return orbit_scrub_verify(s);
}
