/* page_table.h - the hash of every page of a database, and their sum: its fingerprint.
 *
 * A mapped file: 64 bytes of head, then 8 bytes a page (page_hash() in batch.h, native order; 0: not
 * known). It says of itself whether it agrees with the database, so that a kill at any moment leaves
 * a table that either agrees or says that it may not.
 *
 *      0  magic   8  version (u32)   12  page size (u32)   16  pages (u32)   20  trust (u32)
 *     24  sum of all hashes (u64)   32  zeros
 */
#ifndef WALWIRE_PAGE_TABLE_H
#define WALWIRE_PAGE_TABLE_H

#include <stddef.h>
#include <stdint.h>

enum page_table_trust {
	PAGE_TABLE_CLEAN, /* it agrees with the database */
	PAGE_TABLE_BUSY,  /* except for pages that are in the WAL */
	PAGE_TABLE_LOST,  /* nothing is known until a whole copy has been entered */
};

struct page_table {
	uint8_t *at;
	size_t mapped;
	int fd;
};

/* Open or create; a table of another format or page size is begun anew, and lost. 0 or -errno. */
int page_table_open(struct page_table *t, const char *path, uint32_t page_bytes);
void page_table_close(struct page_table *t);

void page_table_mark(struct page_table *t, enum page_table_trust trust);
enum page_table_trust page_table_trust(const struct page_table *t);

/* Enter a page's hash; room for it is made. 0; -ENOSPC, -ENOMEM: the table is lost then. */
int page_table_set(struct page_table *t, uint32_t pgno, uint64_t hash);
uint64_t page_table_get(const struct page_table *t, uint32_t pgno);

/* The database has `pages` pages now: forget those beyond. */
void page_table_cut(struct page_table *t, uint32_t pages);

uint64_t page_table_sum(const struct page_table *t);

#endif
