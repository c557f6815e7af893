/* test_segment - shared memory: one writes, others look. */
#include <sys/mman.h>
#include <sys/resource.h>

#include "shm/segment.h"
#include "tests/testing.h"

#define RING RING_BYTES_MIN

/* Does storing a byte at `at` end the process? */
static bool store_crashes(volatile uint8_t *at)
{
	pid_t pid = fork();
	int status = 0;

	if (pid == 0) {
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		*at = 1;
		_exit(0);
	}
	waitpid(pid, &status, 0);
	return WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
}

/* A new segment says what it is, and its memory is zero and can be written to. */
static const char *test_create(void)
{
	struct segment s;

	for (int cpu = -1; cpu < 1; cpu++) {
		EXPECT(segment_create(&s, "app.db", RING, cpu) == 0);
		EXPECT(s.header->magic == SEGMENT_MAGIC && s.header->version == SEGMENT_VERSION);
		EXPECT(s.header->header_bytes == s.header_bytes && s.header->ring_bytes == RING);
		EXPECT(s.ring_bytes == RING && s.header->page_size == 0);
		EXPECT(!strcmp(s.header->name, "app.db"));
		for (int i = 0; i < COUNTER_COUNT; i++)
			EXPECT(counter_get(&s.header->counters, (enum counter_id)i) == 0);
		for (uint64_t i = 0; i < RING; i += 4096)
			EXPECT(s.data[i] == 0);
		memset(s.data, 0xa5, RING);
		EXPECT(s.data[2 * RING - 1] == 0xa5);
		segment_close(&s);
		segment_close(&s);
	}
	return NULL;
}

/* The ring's bytes stand twice in a row, so what crosses the end is contiguous. */
static const char *test_mirrored(void)
{
	struct segment s;
	uint8_t bytes[8192];

	EXPECT(segment_create(&s, "app.db", RING, -1) == 0);
	rnd_fill(bytes, sizeof(bytes));
	memcpy(s.data + RING - 4096, bytes, sizeof(bytes));
	EXPECT(!memcmp(s.data, bytes + 4096, 4096));
	EXPECT(!memcmp(s.data + 2 * RING - 4096, bytes, 4096));
	for (int i = 0; i < 1000; i++) {
		uint64_t at = rnd() % RING;

		s.data[at + (i & 1 ? RING : 0)] = (uint8_t)i;
		EXPECT(s.data[at + (i & 1 ? 0 : RING)] == (uint8_t)i);
	}
	segment_close(&s);
	return NULL;
}

/* Whoever attaches sees what is written, mirrored too, and cannot write: not through the mapping and
 * not through the descriptor it is given. */
static const char *test_attach(void)
{
	struct segment s, o;
	int fd;

	EXPECT(segment_create(&s, "app.db", RING, -1) == 0);
	fd = segment_readonly_fd(&s);
	EXPECT(fd >= 0);
	EXPECT(segment_attach(&o, fd) == 0);
	EXPECT(o.ring_bytes == RING && o.header_bytes == s.header_bytes && o.huge == s.huge);
	EXPECT(!strcmp(o.header->name, "app.db"));
	memcpy(s.data + RING - 2, "walwire", 8);
	EXPECT(!memcmp(o.data + RING - 2, "walwire", 8) && !memcmp(o.data, "lwire", 6));
	counter_add(&s.header->counters, COUNTER_commits, 7);
	EXPECT(counter_get(&o.header->counters, COUNTER_commits) == 7);
	EXPECT(!store_crashes(s.data + 4096));
	EXPECT(store_crashes(o.data));
	EXPECT(store_crashes(o.data + RING));
	EXPECT(store_crashes((uint8_t *)o.header));
	EXPECT(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	EXPECT(mprotect(o.data, RING, PROT_READ | PROT_WRITE) < 0);
	EXPECT(ftruncate(fd, 0) < 0);
	segment_close(&s); /* the memory stays for who still maps it */
	EXPECT(!memcmp(o.data + RING - 2, "walwire", 8));
	segment_close(&o);
	EXPECT(fcntl(fd, F_GETFD) >= 0); /* the caller's */
	close(fd);
	return NULL;
}

static int attach_now(const struct segment *s)
{
	struct segment o;
	int err = segment_attach(&o, s->fd);

	if (err == 0)
		segment_close(&o);
	return err;
}

/* A header with another magic, version or size is refused, and so is any file that is none. */
static const char *test_damaged(void)
{
	static const uint64_t odd[] = {0, 1, 4096, RING / 2, RING + 1, RING + 4096, 2 * RING,
				       3 * RING / 2, 1ull << 63, UINT64_MAX};
	struct segment s, o;
	struct segment_header h;
	uint8_t *at;
	int fd;

	EXPECT(segment_create(&s, "app.db", RING, -1) == 0);
	at = (uint8_t *)s.header;
	h = *s.header;
	for (size_t i = 0; i < offsetof(struct segment_header, name); i++) {
		if (i >= offsetof(struct segment_header, page_size) &&
		    i < offsetof(struct segment_header, header_bytes))
			continue; /* it changes once it is known */
		for (int bit = 0; bit < 8; bit++) {
			at[i] ^= (uint8_t)(1 << bit);
			EXPECT(attach_now(&s) == -EPROTO);
			at[i] ^= (uint8_t)(1 << bit);
		}
	}
	for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
		if (odd[i] == h.header_bytes)
			continue; /* that one is right */
		s.header->ring_bytes = odd[i];
		EXPECT(attach_now(&s) == -EPROTO);
		s.header->header_bytes = h.header_bytes + h.ring_bytes - odd[i]; /* the sum is right */
		EXPECT(attach_now(&s) == -EPROTO);
		s.header->header_bytes = odd[i];
		s.header->ring_bytes = h.header_bytes + h.ring_bytes - odd[i];
		EXPECT(attach_now(&s) == -EPROTO);
		s.header->header_bytes = h.header_bytes;
		s.header->ring_bytes = h.ring_bytes;
	}
	EXPECT(attach_now(&s) == 0);
	segment_close(&s);

	EXPECT(segment_attach(&o, -1) == -EBADF);
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	EXPECT(segment_attach(&o, fd) == -EPROTO);
	close(fd);
	fd = memfd_create("test_segment", MFD_CLOEXEC);
	EXPECT(segment_attach(&o, fd) == -EPROTO);
	EXPECT(write(fd, &h, sizeof(h) - 1) == (ssize_t)sizeof(h) - 1);
	EXPECT(segment_attach(&o, fd) == -EPROTO);
	EXPECT(write(fd, (char *)&h + sizeof(h) - 1, 1) == 1);
	EXPECT(segment_attach(&o, fd) == -EPROTO); /* the ring is missing */
	close(fd);
	return NULL;
}

/* Sizes and names out of bounds are refused, and a ring larger than memory is refused as well instead
 * of ending somebody; nothing is left behind. */
static const char *test_refused(void)
{
	static const uint64_t odd[] = {0, 1, RING - 1, RING + 1, RING / 2, 3 * RING, RING_BYTES_MAX + 1,
				       2 * RING_BYTES_MAX, 1ull << 63, UINT64_MAX};
	char name[SEGMENT_NAME_MAX + 1];
	unsigned long long kb = 0;
	struct segment s;
	char text[128];
	FILE *f;

	for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
		EXPECT(segment_create(&s, "app.db", odd[i], -1) == -EINVAL);
		segment_close(&s);
	}
	memset(name, 'n', sizeof(name));
	name[SEGMENT_NAME_MAX] = 0;
	EXPECT(segment_create(&s, name, RING, -1) == -EINVAL);
	name[SEGMENT_NAME_MAX - 1] = 0;
	EXPECT(segment_create(&s, name, RING, -1) == 0);
	EXPECT(!strcmp(s.header->name, name));
	segment_close(&s);

	f = fopen("/proc/meminfo", "re");
	EXPECT(f);
	while (fgets(text, sizeof(text), f))
		if (sscanf(text, "MemAvailable: %llu kB", &kb) == 1)
			break;
	fclose(f);
	if (kb && kb << 10 < RING_BYTES_MAX) {
		EXPECT(segment_create(&s, "app.db", RING_BYTES_MAX, -1) == -ENOMEM);
		segment_close(&s);
	}
	return NULL;
}

/* When the address space does not suffice, that is said and nothing is left. */
static const char *test_no_space(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return NULL; /* their shadows need more than any limit */
#else
	struct rlimit limit = {64 << 20, 64 << 20};
	struct segment s;

	EXPECT(setrlimit(RLIMIT_AS, &limit) == 0);
	EXPECT(segment_create(&s, "app.db", 64 << 20, -1) == -ENOMEM);
	segment_close(&s);
	return NULL;
#endif
}

int main(void)
{
	run("segment_create", test_create);
	run("segment_mirrored", test_mirrored);
	run("segment_attach_is_for_reading", test_attach);
	run("segment_damaged_headers", test_damaged);
	run("segment_refused", test_refused);
	run("segment_no_address_space", test_no_space);
	return failed;
}
