#include <unistd.h>

#include "daemon/apply/applier_parts.h"

void table_trust(struct applier *a, enum page_table_trust trust)
{
	/* Lost stays lost until a whole copy has been entered. */
	if (a->table.at && page_table_trust(&a->table) != PAGE_TABLE_LOST)
		page_table_mark(&a->table, trust);
}

/* A table that cannot grow is lost and says so; the replica goes on without. */
void table_enter(struct applier *a, const uint8_t *frame, uint64_t hash)
{
	if (a->table.at)
		page_table_set(&a->table, frame_pgno(frame), hash);
}

void table_enter_batch(struct applier *a, const uint8_t *batch, const struct batch_header *h)
{
	const uint64_t *hashes = feed_hashes(a->feed, a->pos);

	for (uint32_t i = 0; i < h->frames; i++)
		table_enter(a, batch_frame(batch, i, 1u << h->page_shift), hashes[i]);
}

/* A whole copy has been entered. */
void table_complete(struct applier *a, uint32_t db_pages)
{
	if (!a->table.at)
		return;
	page_table_cut(&a->table, db_pages);
	page_table_mark(&a->table, PAGE_TABLE_CLEAN);
}

void table_open(struct applier *a, uint32_t page_bytes)
{
	if (!a->table.at && page_table_open(&a->table, a->table_path, page_bytes))
		a->table.at = NULL;
}

/* Enter the frames from..to of our own WAL. */
void table_enter_written(struct applier *a, uint32_t from, uint32_t to)
{
	static uint8_t frame[FRAME_HEADER_BYTES + PAGE_BYTES_MAX];
	uint32_t bytes = batch_frame_bytes(a->record.page_bytes);

	if (!a->table.at)
		return;
	for (uint32_t f = from; f <= to; f++) {
		if (pread(a->writer.wal_fd, frame, bytes,
			  (off_t)wal_frame_offset(f, a->record.page_bytes)) != (ssize_t)bytes) {
			page_table_mark(&a->table, PAGE_TABLE_LOST);
			return;
		}
		table_enter(a, frame, page_hash(frame_pgno(frame), frame + FRAME_HEADER_BYTES,
						a->record.page_bytes));
	}
}

/* Enter what is in the WAL once more: a kill may have come between a commit and its entries. */
void table_catch_up(struct applier *a)
{
	uint32_t db_pages = a->writer.header.db_pages;

	if (!a->table.at)
		return;
	if (page_table_trust(&a->table) == PAGE_TABLE_LOST)
		return;
	table_enter_written(a, 1, a->writer.header.mx_frame);
	if (db_pages)
		page_table_cut(&a->table, db_pages);
	table_trust(a, PAGE_TABLE_CLEAN);
}

/* Compare the file, page by page, with the table. */
bool table_agrees(struct applier *a)
{
	static uint8_t page[PAGE_BYTES_MAX];
	uint32_t page_bytes = a->record.page_bytes, pages = 0;

	if (conn_file_pages(&a->writer.conn, page_bytes, &pages) ||
	    page_table_get(&a->table, pages) == 0 || page_table_get(&a->table, pages + 1) != 0)
		return false;
	for (uint32_t p = 1; p <= pages; p++) {
		uint64_t hash = page_table_get(&a->table, p);

		/* Pages that no commit ever carried have no hash: they hold nothing. */
		if (hash && (conn_read_file(&a->writer.conn, page, page_bytes,
					    (uint64_t)(p - 1) * page_bytes) ||
			     page_hash(p, page, page_bytes) != hash))
			return false;
	}
	return true;
}

uint64_t applier_fingerprint(const struct applier *a)
{
	if (!a->table.at || a->mode != APPLIER_LIVE ||
	    page_table_trust(&a->table) != PAGE_TABLE_CLEAN)
		return STATUS_UNKNOWN;
	return page_table_sum(&a->table);
}
