#include "daemon/base/page_table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TABLE_MAGIC   0x656c626174777761ull
#define TABLE_VERSION 1u
#define HEAD_BYTES    64u
#define GROW_BYTES    (1u << 20)

struct head {
	uint64_t magic;
	uint32_t version, page_bytes, pages, trust;
	uint64_t sum;
};

static struct head *head(const struct page_table *t)
{
	return (struct head *)(void *)t->at;
}

static uint64_t *hashes(const struct page_table *t)
{
	return (uint64_t *)(void *)(t->at + HEAD_BYTES);
}

/* Allocated, not a hole: a full disk must not become a SIGBUS later. */
static int grow(struct page_table *t, size_t bytes)
{
	void *at;
	int err;

	bytes = (bytes + GROW_BYTES - 1) / GROW_BYTES * GROW_BYTES;
	err = -posix_fallocate(t->fd, 0, (off_t)bytes);
	if (err)
		return err;
	at = t->at ? mremap(t->at, t->mapped, bytes, MREMAP_MAYMOVE) :
		     mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	if (at == MAP_FAILED)
		return -errno;
	t->at = at;
	t->mapped = bytes;
	return 0;
}

int page_table_open(struct page_table *t, const char *path, uint32_t page_bytes)
{
	struct stat st;
	struct head *h;
	int err;

	memset(t, 0, sizeof(*t));
	t->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (t->fd < 0)
		return -errno;
	err = fstat(t->fd, &st) < 0 ? -errno : grow(t, st.st_size > 0 ? (size_t)st.st_size : 1);
	if (err) {
		close(t->fd);
		t->fd = -1;
		return err;
	}
	h = head(t);
	if (h->magic != TABLE_MAGIC || h->version != TABLE_VERSION || h->page_bytes != page_bytes ||
	    (uint64_t)h->pages * 8 + HEAD_BYTES > (uint64_t)st.st_size) {
		memset(t->at, 0, t->mapped);
		*h = (struct head){TABLE_MAGIC, TABLE_VERSION, page_bytes, 0, PAGE_TABLE_LOST, 0};
	}
	/* A kill may have come between an entry and the sum. */
	h->sum = 0;
	for (uint32_t p = 0; p < h->pages; p++)
		h->sum += hashes(t)[p];
	return 0;
}

void page_table_close(struct page_table *t)
{
	if (!t->at)
		return;
	munmap(t->at, t->mapped);
	close(t->fd);
	t->at = NULL;
}

void page_table_mark(struct page_table *t, enum page_table_trust trust)
{
	/* Entries before the word that vouches for them, and that word before what follows. */
	atomic_thread_fence(memory_order_seq_cst);
	__atomic_store_n(&head(t)->trust, trust, __ATOMIC_SEQ_CST);
}

enum page_table_trust page_table_trust(const struct page_table *t)
{
	uint32_t trust = head(t)->trust;

	return trust <= PAGE_TABLE_LOST ? (enum page_table_trust)trust : PAGE_TABLE_LOST;
}

int page_table_set(struct page_table *t, uint32_t pgno, uint64_t hash)
{
	size_t need = HEAD_BYTES + (size_t)pgno * 8;
	struct head *h;

	if (need > t->mapped) {
		int err = grow(t, need + need / 8);

		if (err) {
			page_table_mark(t, PAGE_TABLE_LOST);
			return err;
		}
	}
	h = head(t);
	if (pgno > h->pages)
		h->pages = pgno; /* what lies between is zero */
	h->sum += hash - hashes(t)[pgno - 1];
	hashes(t)[pgno - 1] = hash;
	return 0;
}

uint64_t page_table_get(const struct page_table *t, uint32_t pgno)
{
	return pgno && pgno <= head(t)->pages ? hashes(t)[pgno - 1] : 0;
}

void page_table_cut(struct page_table *t, uint32_t pages)
{
	struct head *h = head(t);

	for (; h->pages > pages; h->pages--) {
		h->sum -= hashes(t)[h->pages - 1];
		hashes(t)[h->pages - 1] = 0;
	}
}

uint64_t page_table_sum(const struct page_table *t)
{
	return head(t)->sum;
}
