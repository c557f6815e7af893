/* test_ring - the ring gives up what nobody needs, and nothing else. */
#include <pthread.h>
#include <sys/mman.h>

#include "shm/ring.h"
#include "tests/testing.h"

#define SIZE	(1u << 14)
#define BATCHES 4096 /* boundaries the model remembers */

static struct ring_shared shared;
static struct ring ring;

/* A ring of `size` bytes, mapped twice in a row. */
static bool ring_make(uint64_t size)
{
	int fd = memfd_create("test_ring", MFD_CLOEXEC);
	uint8_t *at = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool good = fd >= 0 && at != MAP_FAILED && ftruncate(fd, (off_t)size) == 0;

	for (int copy = 0; good && copy < 2; copy++)
		good = mmap(at + copy * size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			    fd, 0) != MAP_FAILED;
	close(fd);
	if (good)
		ring_init(&ring, &shared, at, size);
	return good;
}

/* Every byte of a batch depends on where it stands. */
static uint8_t byte_at(uint64_t pos, uint32_t i)
{
	return (uint8_t)((pos >> 6) * 31 + i * 7 + (i >> 8));
}

static void write_batch(uint64_t pos, uint32_t bytes)
{
	uint32_t le = htole32(bytes);
	uint8_t *p = ring_at(&ring, pos);

	memcpy(p, &le, 4);
	for (uint32_t i = 4; i < bytes; i++)
		p[i] = byte_at(pos, i);
}

static bool is_batch(const uint8_t *p, uint64_t pos, uint32_t bytes)
{
	uint32_t le;

	memcpy(&le, p, 4);
	if (le32toh(le) != bytes)
		return false;
	for (uint32_t i = 4; i < bytes; i++)
		if (p[i] != byte_at(pos, i))
			return false;
	return true;
}

/* Claim and publish; false when there is no room. */
static bool put_batch(uint32_t bytes)
{
	uint64_t pos = ring_published(&ring);

	if (ring_claim(&ring, bytes) < bytes)
		return false;
	write_batch(pos, bytes);
	ring_publish(&ring, pos + bytes);
	return true;
}

/* Put batches of 64 bytes until the ring holds nothing else, `ahead` bytes past a full turn. */
static bool turn(uint64_t ahead)
{
	while (ring_published(&ring) < SIZE + ahead)
		if (!put_batch(RING_ALIGN))
			return false;
	return ring_oldest(&ring) == ahead;
}

/* What fits is given, and no history is given up for it. */
static const char *test_fits(void)
{
	EXPECT(ring_make(SIZE));
	EXPECT(ring_claim(&ring, 0) == 0);
	for (uint32_t have = 0; have + 128 < SIZE; have += 128) {
		EXPECT(ring_claim(&ring, 128) == 128);
		EXPECT(ring_claim(&ring, SIZE - have) == SIZE - have);
		EXPECT(put_batch(128));
		EXPECT(ring_oldest(&ring) == 0 && ring_published(&ring) == have + 128);
	}
	return NULL;
}

/* What fills the ring to its last byte is given whole, in one batch or in many, wherever it begins. */
static const char *test_fills(void)
{
	EXPECT(ring_make(SIZE));
	for (uint32_t left = SIZE; left; left -= 256)
		EXPECT(put_batch(256));
	EXPECT(ring_oldest(&ring) == 0 && ring_published(&ring) == SIZE);
	for (uint64_t ahead = 0; ahead <= 2 * SIZE; ahead += 1984) {
		EXPECT(ring_make(SIZE));
		EXPECT(turn(ahead));
		EXPECT(put_batch(SIZE));
		EXPECT(ring_oldest(&ring) == SIZE + ahead);
		EXPECT(ring_published(&ring) == 2 * SIZE + ahead);
		EXPECT(is_batch(ring_at(&ring, SIZE + ahead), SIZE + ahead, SIZE));
	}
	return NULL;
}

/* One byte too much costs the oldest batch, no more; with a reader there, only what is free is given,
 * and a look at the ring costs nothing. */
static const char *test_exceeds(void)
{
	int reader;

	EXPECT(ring_make(SIZE));
	EXPECT(turn(0));
	EXPECT(ring_claim(&ring, 1) == 1 && ring_oldest(&ring) == RING_ALIGN);
	EXPECT(ring_claim(&ring, 64) == 64 && ring_oldest(&ring) == RING_ALIGN);
	EXPECT(ring_claim(&ring, 65) == 65 && ring_oldest(&ring) == 2 * RING_ALIGN);

	reader = ring_attach(&ring, 5 * RING_ALIGN);
	EXPECT(reader >= 0);
	EXPECT(ring_claim(&ring, SIZE) == 5 * RING_ALIGN);
	EXPECT(ring_oldest(&ring) == 5 * RING_ALIGN);
	EXPECT(ring_claim(&ring, SIZE) == 5 * RING_ALIGN);
	ring_release(&ring, reader, 6 * RING_ALIGN);
	EXPECT(ring_claim(&ring, SIZE) == 6 * RING_ALIGN);
	ring_detach(&ring, reader);
	EXPECT(ring_claim(&ring, SIZE) == SIZE);
	EXPECT(ring_oldest(&ring) == ring_published(&ring));
	return NULL;
}

/* A batch that stands across the end is contiguous and whole, at every place it can be cut. */
static const char *test_wraparound(void)
{
	const uint32_t bytes = 1024;

	for (uint64_t before = 64; before < bytes; before += 64) {
		uint64_t pos = 3 * SIZE - before;

		EXPECT(ring_make(SIZE));
		EXPECT(turn(2 * SIZE - before));
		EXPECT(put_batch(bytes));
		EXPECT(ring_batch_bytes(&ring, pos) == bytes);
		EXPECT(is_batch(ring_at(&ring, pos), pos, bytes));
		EXPECT(!memcmp(ring.data, ring_at(&ring, pos) + before, bytes - before));
	}
	return NULL;
}

/* Readers come and go and hold what they need: after any history of random steps `oldest` is the first
 * batch that had to stay and no reader has been passed. */
static const char *test_readers(void)
{
	static uint64_t boundary[BATCHES]; /* of batches, a window of the last ones */
	uint64_t n = 1;
	uint64_t stand[RING_READERS_MAX];
	bool there[RING_READERS_MAX] = {false};

	EXPECT(ring_make(SIZE));
	boundary[0] = 0;
	for (int step = 0; step < 100000; step++) {
		uint64_t oldest = ring_oldest(&ring), published = ring_published(&ring);
		uint64_t first = n - 1, slowest = published;
		int i = (int)below(6);

		while (first && boundary[(first - 1) % BATCHES] >= oldest &&
		       boundary[(first - 1) % BATCHES] < boundary[first % BATCHES])
			first--;
		switch (below(4)) {
		case 0:
			if (there[i]) {
				if (below(4) == 0) {
					ring_detach(&ring, i);
					there[i] = false;
				}
			} else {
				uint64_t pos = boundary[(first + rnd() % (n - first)) % BATCHES];
				int got = ring_attach(&ring, pos);

				EXPECT(got >= 0 && !there[got]);
				there[got] = true;
				stand[got] = pos;
			}
			break;
		case 1:
			if (there[i]) {
				uint64_t b = first + rnd() % (n - first);

				if (boundary[b % BATCHES] >= stand[i]) {
					stand[i] = boundary[b % BATCHES];
					ring_release(&ring, i, stand[i]);
				}
			}
			break;
		default: {
			uint32_t bytes = RING_ALIGN * (1 + below(below(8) ? 8 : SIZE / RING_ALIGN));
			uint64_t got = ring_claim(&ring, bytes), expected = oldest;

			for (int r = 0; r < RING_READERS_MAX; r++)
				if (there[r] && stand[r] < slowest)
					slowest = stand[r];
			EXPECT(ring_slowest(&ring) == slowest);
			for (uint64_t b = first; expected < slowest &&
						 published + bytes - expected > SIZE;)
				expected = boundary[++b % BATCHES];
			EXPECT(ring_oldest(&ring) == expected && expected <= slowest);
			EXPECT(got == (bytes < SIZE - (published - expected) ?
					       bytes :
					       SIZE - (published - expected)));
			if (got < bytes)
				break;
			write_batch(published, bytes);
			ring_publish(&ring, published + bytes);
			boundary[n++ % BATCHES] = published + bytes;
		}
		}
		for (int r = 0; r < RING_READERS_MAX; r++)
			EXPECT(!there[r] || ring_oldest(&ring) <= stand[r]);
		EXPECT(ring_published(&ring) - ring_oldest(&ring) <= SIZE);
	}
	return NULL;
}

/* A position that is gone or has not come is refused, and so is one reader too many. */
static const char *test_attach(void)
{
	EXPECT(ring_make(SIZE));
	EXPECT(turn(640));
	EXPECT(ring_attach(&ring, 576) == -ESTALE);
	EXPECT(ring_attach(&ring, SIZE + 704) == -ESTALE);
	for (int i = 0; i < RING_READERS_MAX; i++)
		EXPECT(ring_attach(&ring, i & 1 ? 640 : SIZE + 640) == i);
	EXPECT(ring_attach(&ring, 640) == -ENOSPC);
	ring_detach(&ring, 7);
	EXPECT(ring_attach(&ring, 640) == 7);
	return NULL;
}

/* A foreign reader is told that it was lapped as soon as its bytes may be written to, and not before. */
static const char *test_lapped(void)
{
	uint8_t copy[128];

	EXPECT(ring_make(SIZE));
	EXPECT(put_batch(128));
	while (ring_published(&ring) < SIZE) {
		memcpy(copy, ring_at(&ring, 0), 128);
		EXPECT(ring_intact(&ring, 0) && is_batch(copy, 0, 128));
		EXPECT(put_batch(64));
	}
	EXPECT(ring_intact(&ring, 0));
	EXPECT(ring_claim(&ring, 64) == 64); /* from here on the producer may write there */
	EXPECT(!ring_intact(&ring, 0) && ring_intact(&ring, 128));
	return NULL;
}

/* ---- two threads ---- */

#define STRESS_SIZE  (1u << 16)
#define STRESS_BYTES (48u << 20)

static int stress_reader;
static uint64_t stress_sum, stress_read;

static uint64_t fold(uint64_t sum, const uint8_t *p, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i += 8) {
		uint64_t v;

		memcpy(&v, p + i, 8);
		sum = (sum ^ v) * 0x9e3779b97f4a7c15ull;
		sum ^= sum >> 29;
	}
	return sum;
}

static void *read_all(void *arg)
{
	uint64_t pos = 0;

	(void)arg;
	while (pos < STRESS_BYTES) {
		uint64_t end = ring_published(&ring);

		if (pos == end)
			sched_yield();
		while (pos < end) {
			uint32_t bytes = ring_batch_bytes(&ring, pos);

			if (bytes == 0 || bytes % RING_ALIGN || bytes > end - pos)
				return (void *)"a batch of a wrong length was published";
			stress_sum = fold(stress_sum, ring_at(&ring, pos), bytes);
			pos += bytes;
			ring_release(&ring, stress_reader, pos);
		}
	}
	stress_read = pos;
	return NULL;
}

/* A thread that reads sees, byte for byte, what another writes as fast as it can. */
static const char *test_threads(void)
{
	pthread_t thread;
	uint64_t sum = 0, pos = 0;
	uint32_t bytes = 0;
	void *why;

	EXPECT(ring_make(STRESS_SIZE));
	stress_reader = ring_attach(&ring, 0);
	EXPECT(stress_reader >= 0);
	EXPECT(pthread_create(&thread, NULL, read_all, NULL) == 0);
	alarm(60); /* a reader that stopped would be waited for */
	while (pos < STRESS_BYTES) {
		uint64_t v;

		if (!bytes)
			bytes = RING_ALIGN * (1 + below(below(8) ? 16 : 400));
		if (bytes > STRESS_BYTES - pos)
			bytes = (uint32_t)(STRESS_BYTES - pos);
		if (ring_claim(&ring, bytes) < bytes) {
			sched_yield();
			continue;
		}
		v = rnd();
		for (uint32_t i = 0; i < bytes; i += 8, v = v * 5 + 1)
			memcpy(ring_at(&ring, pos) + i, &v, 8);
		v = htole32(bytes);
		memcpy(ring_at(&ring, pos), &v, 4);
		sum = fold(sum, ring_at(&ring, pos), bytes);
		pos += bytes;
		ring_publish(&ring, pos);
		bytes = 0;
	}
	pthread_join(thread, &why);
	if (why)
		return why;
	EXPECT(stress_read == pos && stress_sum == sum);
	return NULL;
}

int main(void)
{
	run("ring_fits", test_fits);
	run("ring_fills", test_fills);
	run("ring_exceeds", test_exceeds);
	run("ring_wraparound", test_wraparound);
	run("ring_readers_are_not_passed", test_readers);
	run("ring_attach", test_attach);
	run("ring_foreign_reader_lapped", test_lapped);
	run("ring_two_threads", test_threads);
	return failed;
}
