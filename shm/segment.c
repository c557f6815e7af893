#include "shm/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <numa.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HUGE_PAGE_BYTES (2ull << 20)

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

/* Map header once and data twice; `prot` as for mmap. */
static int map_all(struct segment *s, int prot)
{
	uint64_t data_bytes = 2 * s->ring_bytes;
	uint64_t align = s->huge ? HUGE_PAGE_BYTES : 4096;
	uint8_t *base, *at;
	void *header;
	int err;

	header = mmap(NULL, s->header_bytes, prot, MAP_SHARED, s->fd, 0);
	if (header == MAP_FAILED)
		return -errno;
	/* One reservation for both copies; huge pages want an aligned address. */
	base = mmap(NULL, data_bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED) {
		err = -errno;
		goto undo_header;
	}
	at = (uint8_t *)round_up((uintptr_t)base, align);
	if (at > base)
		munmap(base, (size_t)(at - base));
	if (at + data_bytes < base + data_bytes + align)
		munmap(at + data_bytes, (size_t)(base + align - at));
	for (int copy = 0; copy < 2; copy++) {
		void *want = at + (uint64_t)copy * s->ring_bytes;

		if (mmap(want, s->ring_bytes, prot, MAP_SHARED | MAP_FIXED, s->fd,
			 (off_t)s->header_bytes) != want) {
			err = -errno;
			goto undo_data;
		}
	}
	s->header = header;
	s->data = at;
	return 0;
undo_data:
	munmap(at, data_bytes);
undo_header:
	munmap(header, s->header_bytes);
	return err;
}

/* A memfd of header_bytes + ring_bytes whose memory is really there. */
static int make_file(struct segment *s, unsigned int flags)
{
	int err;

	s->fd = memfd_create("walwire", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
	if (s->fd < 0)
		return -errno;
	if (ftruncate(s->fd, (off_t)(s->header_bytes + s->ring_bytes)) < 0) {
		err = -errno;
		goto undo_fd;
	}
	/* fallocate allocates every page now: a write into a hole that cannot be filled would
	 * be a SIGBUS later. */
	if (fallocate(s->fd, 0, 0, (off_t)(s->header_bytes + s->ring_bytes)) < 0) {
		err = -errno;
		goto undo_fd;
	}
	return 0;
undo_fd:
	close(s->fd);
	s->fd = -1;
	return err;
}

/* Memory that could be had now, in bytes; a limit that is far away if the kernel does not tell. */
static uint64_t memory_available(void)
{
	unsigned long long kb = UINT64_MAX >> 11;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return (uint64_t)kb << 10;
}

int segment_create(struct segment *s, const char *name, uint64_t ring_bytes, int cpu)
{
	struct bitmask *old = NULL;
	int err;

	memset(s, 0, sizeof(*s));
	s->fd = -1;
	if (ring_bytes < RING_BYTES_MIN || ring_bytes > RING_BYTES_MAX ||
	    (ring_bytes & (ring_bytes - 1)) || strlen(name) >= SEGMENT_NAME_MAX)
		return -EINVAL;
	/* The kernel would rather kill somebody than refuse: ask first. */
	if (ring_bytes > memory_available() / 4 * 3)
		return -ENOMEM;
	s->ring_bytes = ring_bytes;
	s->header_bytes = HUGE_PAGE_BYTES;
	s->huge = 1;
	if (cpu >= 0 && numa_available() >= 0) {
		int node = numa_node_of_cpu(cpu);

		old = numa_get_membind();
		if (node >= 0)
			numa_set_preferred(node);
	}
	err = make_file(s, MFD_HUGETLB);
	if (err) {
		s->huge = 0;
		s->header_bytes = round_up(sizeof(struct segment_header), 4096);
		err = make_file(s, 0);
	}
	if (old) {
		numa_set_localalloc();
		numa_bitmask_free(old);
	}
	if (err)
		return err;
	err = map_all(s, PROT_READ | PROT_WRITE);
	if (err) {
		close(s->fd);
		s->fd = -1;
		return err;
	}
	/* Our mapping stays writable; whoever opens it from now on can only read. A kernel that
	 * cannot seal leaves that to the descriptor's mode. */
	fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
	s->header->version = SEGMENT_VERSION;
	s->header->header_bytes = s->header_bytes;
	s->header->ring_bytes = ring_bytes;
	strcpy(s->header->name, name);
	s->header->magic = SEGMENT_MAGIC;
	return 0;
}

int segment_attach(struct segment *s, int fd)
{
	struct segment_header h;
	struct stat st;
	ssize_t n;

	memset(s, 0, sizeof(*s));
	s->fd = -1;
	if (fstat(fd, &st) < 0)
		return -errno;
	n = pread(fd, &h, sizeof(h), 0);
	if (n != (ssize_t)sizeof(h))
		return n < 0 ? -errno : -EPROTO;
	if (h.magic != SEGMENT_MAGIC || h.version != SEGMENT_VERSION)
		return -EPROTO;
	if (h.header_bytes < sizeof(h) || h.header_bytes % 4096 || h.header_bytes > HUGE_PAGE_BYTES ||
	    h.ring_bytes < RING_BYTES_MIN || h.ring_bytes > RING_BYTES_MAX ||
	    (h.ring_bytes & (h.ring_bytes - 1)) ||
	    (uint64_t)st.st_size != h.header_bytes + h.ring_bytes)
		return -EPROTO;
	s->header_bytes = h.header_bytes;
	s->ring_bytes = h.ring_bytes;
	s->huge = h.header_bytes == HUGE_PAGE_BYTES;
	s->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (s->fd < 0)
		return -errno;
	int err = map_all(s, PROT_READ);

	if (err) {
		close(s->fd);
		s->fd = -1;
	}
	return err;
}

int segment_readonly_fd(const struct segment *s)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

void segment_close(struct segment *s)
{
	if (s->fd < 0)
		return;
	munmap(s->data, 2 * s->ring_bytes);
	munmap(s->header, s->header_bytes);
	close(s->fd);
	s->fd = -1;
}
