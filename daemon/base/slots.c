#include "daemon/base/slots.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxh_x86dispatch.h>

#define FILE_BYTES    4096u
#define SLOTS_MAGIC   0x31746f6c73575741ull
#define SLOTS_VERSION 1u

struct head {
	uint64_t magic;
	uint32_t version;
	uint32_t record_bytes;
	uint8_t id[16];
};

static uint8_t *slot(const struct slots *s, uint64_t sequence)
{
	return s->at + 64 + (sequence & 1) * (16 + SLOTS_RECORD_MAX);
}

/* The slot's sequence, or 0 when nothing valid stands there. */
static uint64_t slot_sequence(const struct slots *s, int which)
{
	const uint8_t *p = slot(s, (uint64_t)which);
	uint64_t sequence, check;

	memcpy(&sequence, p, 8);
	memcpy(&check, p + 8 + s->record_bytes, 8);
	if (sequence == 0 || check != XXH3_64bits_dispatch(p, 8 + s->record_bytes))
		return 0;
	return sequence;
}

int slots_open(struct slots *s, const char *path, size_t record_bytes, uint8_t id[16])
{
	static const uint8_t none[16];
	struct head head;
	struct stat st;
	int err;

	assert(record_bytes % 8 == 0 && record_bytes <= SLOTS_RECORD_MAX);
	memset(s, 0, sizeof(*s));
	s->record_bytes = record_bytes;
	s->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (s->fd < 0)
		return -errno;
	if (fstat(s->fd, &st) < 0) {
		err = -errno;
		goto undo_fd;
	}
	if (st.st_size != 0 && st.st_size != FILE_BYTES) {
		err = -EPROTO;
		goto undo_fd;
	}
	/* Allocated, not a hole: a full disk must not become a SIGBUS later. */
	err = -posix_fallocate(s->fd, 0, FILE_BYTES);
	if (err)
		goto undo_fd;
	s->at = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	if (s->at == MAP_FAILED) {
		err = -errno;
		goto undo_fd;
	}
	memcpy(&head, s->at, sizeof(head));
	if (head.magic == 0) { /* new, or its maker was killed before this line */
		head = (struct head){0, SLOTS_VERSION, (uint32_t)record_bytes, {0}};
		if (memcmp(id, none, 16) == 0 && getrandom(id, 16, 0) != 16) {
			err = -EIO;
			goto undo_map;
		}
		memcpy(head.id, id, 16);
		memcpy(s->at, &head, sizeof(head));
		head.magic = SLOTS_MAGIC;
		memcpy(s->at, &head, sizeof(head.magic));
	}
	if (head.magic != SLOTS_MAGIC || head.version != SLOTS_VERSION ||
	    head.record_bytes != record_bytes) {
		err = -EPROTO;
		goto undo_map;
	}
	memcpy(id, head.id, 16);
	for (int i = 0; i < 2; i++)
		if (slot_sequence(s, i) > s->sequence)
			s->sequence = slot_sequence(s, i);
	s->fresh = s->sequence == 0;
	return 0;
undo_map:
	munmap(s->at, FILE_BYTES);
undo_fd:
	close(s->fd);
	s->fd = -1;
	s->at = NULL;
	return err;
}

void slots_close(struct slots *s)
{
	if (!s->at)
		return;
	munmap(s->at, FILE_BYTES);
	close(s->fd);
	s->at = NULL;
}

int slots_read(struct slots *s, void *ret_record)
{
	if (s->sequence == 0)
		return -ENOENT;
	memcpy(ret_record, slot(s, s->sequence) + 8, s->record_bytes);
	return 0;
}

void slots_write(struct slots *s, const void *record)
{
	uint64_t sequence = s->sequence + 1, check;
	uint8_t *p = slot(s, sequence);

	memcpy(p, &sequence, 8);
	memcpy(p + 8, record, s->record_bytes);
	check = XXH3_64bits_dispatch(p, 8 + s->record_bytes);
	memcpy(p + 8 + s->record_bytes, &check, 8);
	s->sequence = sequence;
	s->fresh = false;
}

int slots_sync(struct slots *s)
{
	return msync(s->at, FILE_BYTES, MS_SYNC) < 0 ? -errno : 0;
}

void boot_id(uint64_t ret_boot[2])
{
	char text[64] = "";
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	memset(ret_boot, 0, 16);
	if (fd < 0)
		return;
	if (read(fd, text, sizeof(text) - 1) > 16)
		memcpy(ret_boot, text, 16);
	close(fd);
}
