/* The WAL's checksum, wal_checksum() of wal.h, in two ways.
 *
 * Defined word by word: s0 += x + s1, s1 += y + s0. Every addition waits for the one before, which
 * is a cycle a word. But what reaches the end is linear: of a block of n words, word j counts
 * F(n-1-j) times in s0 and F(n-j) times in s1, F being the Fibonacci numbers mod 2^32, and the sums
 * from before the block count as s0' = F(n-1) s0 + F(n) s1, s1' = F(n) s0 + F(n+1) s1. So the words
 * can be taken eight at a time, in any order. */
#include <endian.h>
#include <string.h>

#include "daemon/wal/wal.h"

static void in_order(uint32_t sum[2], const uint8_t *p, size_t bytes, bool big_endian)
{
	const uint8_t *end = p + bytes;
	uint32_t s0 = sum[0], s1 = sum[1];
	uint32_t x, y;

	for (; p < end; p += 8) {
		memcpy(&x, p, 4);
		memcpy(&y, p + 4, 4);
		s0 += (big_endian ? be32toh(x) : le32toh(x)) + s1;
		s1 += (big_endian ? be32toh(y) : le32toh(y)) + s0;
	}
	sum[0] = s0;
	sum[1] = s1;
}

#ifdef __x86_64__

#define BLOCK_WORDS 1024u
#define LANES	    8u

typedef uint32_t lanes __attribute__((vector_size(4 * LANES)));

static uint32_t fibonacci[BLOCK_WORDS + 1]; /* F(BLOCK_WORDS) down to F(0) */
static bool have_avx2;

__attribute__((constructor)) static void prepare(void)
{
	fibonacci[BLOCK_WORDS - 1] = 1;
	for (uint32_t i = BLOCK_WORDS - 1; i-- > 0;)
		fibonacci[i] = fibonacci[i + 1] + fibonacci[i + 2];
	__builtin_cpu_init();
	have_avx2 = __builtin_cpu_supports("avx2");
}

/* A block of n words, a multiple of LANES, BLOCK_WORDS at most. */
__attribute__((target("avx2"))) static void in_lanes(uint32_t sum[2], const uint8_t *p, uint32_t n)
{
	const uint32_t *f = fibonacci + BLOCK_WORDS - n;
	uint32_t before0 = sum[0], before1 = sum[1];
	lanes s0 = {0}, s1 = {0};

	sum[0] = f[1] * before0 + f[0] * before1;
	sum[1] = f[0] * before0 + (f[0] + f[1]) * before1;
	for (uint32_t j = 0; j < n; j += LANES) {
		lanes words, f0, f1;

		memcpy(&words, p + 4 * (size_t)j, sizeof(words));
		memcpy(&f0, f + j + 1, sizeof(f0));
		memcpy(&f1, f + j, sizeof(f1));
		s0 += words * f0;
		s1 += words * f1;
	}
	for (uint32_t i = 0; i < LANES; i++) {
		sum[0] += s0[i];
		sum[1] += s1[i];
	}
}

void wal_checksum(uint32_t sum[2], const void *data, size_t bytes, bool big_endian)
{
	const uint8_t *p = data;

	while (have_avx2 && !big_endian && bytes >= 4 * LANES) {
		uint32_t n = bytes < 4 * BLOCK_WORDS ? (uint32_t)bytes / 4 & ~(LANES - 1) : BLOCK_WORDS;

		in_lanes(sum, p, n);
		p += 4 * (size_t)n;
		bytes -= 4 * (size_t)n;
	}
	in_order(sum, p, bytes, big_endian);
}

#else

void wal_checksum(uint32_t sum[2], const void *data, size_t bytes, bool big_endian)
{
	in_order(sum, data, bytes, big_endian);
}

#endif
