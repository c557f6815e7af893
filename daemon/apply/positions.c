#include "daemon/apply/positions.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxh_x86dispatch.h>

#define ENTRY_BYTES 64u
#define FILE_BYTES  (POSITIONS * ENTRY_BYTES)

struct entry {
	uint64_t sequence, txid, chain;
	uint32_t timeline, mx_frame;
	uint32_t salt[2], sum[2];
	uint64_t zero;
	uint64_t check;
};
_Static_assert(sizeof(struct entry) == ENTRY_BYTES, "the file format is fixed");

/* Entry i, if it is whole. */
static int get(const struct positions *p, uint32_t i, struct entry *ret_e)
{
	memcpy(ret_e, p->at + (size_t)i * ENTRY_BYTES, ENTRY_BYTES);
	return ret_e->sequence && ret_e->check == XXH3_64bits_dispatch(ret_e, 56) ? 0 : -ENOENT;
}

int positions_open(struct positions *p, const char *path)
{
	struct entry e;
	struct stat st;
	int err;

	memset(p, 0, sizeof(*p));
	p->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (p->fd < 0)
		return -errno;
	if (fstat(p->fd, &st) < 0) {
		err = -errno;
		goto undo_fd;
	}
	if (st.st_size != 0 && st.st_size != FILE_BYTES) {
		err = -EPROTO;
		goto undo_fd;
	}
	/* Allocated, not a hole: a full disk must not become a SIGBUS later. */
	err = -posix_fallocate(p->fd, 0, FILE_BYTES);
	if (err)
		goto undo_fd;
	p->at = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
	if (p->at == MAP_FAILED) {
		err = -errno;
		goto undo_fd;
	}
	for (uint32_t i = 0; i < POSITIONS; i++)
		if (get(p, i, &e) == 0 && e.sequence > p->sequence)
			p->sequence = e.sequence;
	return 0;
undo_fd:
	close(p->fd);
	p->at = NULL;
	return err;
}

void positions_close(struct positions *p)
{
	if (!p->at)
		return;
	munmap(p->at, FILE_BYTES);
	close(p->fd);
	p->at = NULL;
}

void positions_note(struct positions *p, struct position at, const uint32_t salt[2],
		    uint32_t mx_frame, const uint32_t sum[2])
{
	struct entry e = {
		.sequence = ++p->sequence,
		.txid = at.txid,
		.chain = at.chain,
		.timeline = at.timeline,
		.mx_frame = mx_frame,
		.salt = {salt[0], salt[1]},
		.sum = {sum[0], sum[1]},
	};

	e.check = XXH3_64bits_dispatch(&e, 56);
	memcpy(p->at + (e.sequence % POSITIONS) * ENTRY_BYTES, &e, sizeof(e));
}

int positions_find(const struct positions *p, const struct wal_index_header *h,
		   struct position *ret_at)
{
	uint64_t newest = 0;
	struct entry e;

	for (uint32_t i = 0; i < POSITIONS; i++) {
		if (get(p, i, &e) || e.sequence <= newest || e.mx_frame != h->mx_frame ||
		    memcmp(e.salt, h->salt, sizeof(e.salt)))
			continue;
		if (e.mx_frame && memcmp(e.sum, h->frame_checksum, sizeof(e.sum)))
			continue;
		newest = e.sequence;
		*ret_at = (struct position){e.timeline, e.txid, e.chain};
	}
	return newest ? 0 : -ENOENT;
}

int positions_last(const struct positions *p, struct position *ret_at)
{
	struct entry e;

	if (p->sequence == 0 || get(p, (uint32_t)(p->sequence % POSITIONS), &e))
		return -ENOENT;
	*ret_at = (struct position){e.timeline, e.txid, e.chain};
	return 0;
}

void positions_clear(struct positions *p)
{
	memset(p->at, 0, FILE_BYTES);
	p->sequence = 0;
}

int positions_sync(const struct positions *p)
{
	return msync(p->at, FILE_BYTES, MS_SYNC) < 0 ? -errno : 0;
}
