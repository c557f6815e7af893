/* copy.h - the first copy of a database: a plain file nobody sees until it is whole.
 *
 * Pages of the seed and of the commits between them go straight to their places in DIR/.NAME.seed.
 * At the seed's end the file is cut to its size and renamed to DIR/NAME: from that moment on it is
 * a state of the primary, and the WAL writer goes on. (A replica that exists already is seeded
 * through its WAL instead, so that its readers see one state turn into the other.) */
#ifndef WALWIRE_COPY_H
#define WALWIRE_COPY_H

#include <stdint.h>

struct copy {
	int fd; /* -1: none is being made */
	uint32_t page_bytes;
};

/* Begin anew; what an earlier attempt left is removed. 0 or -errno. */
int copy_begin(struct copy *c, const char *seed_path, uint32_t page_bytes);
/* Put the pages of `n` frames (layout of batch.h) where they belong. 0 or -errno. */
int copy_pages(struct copy *c, const uint8_t *frames, uint32_t n);
/* Cut to size and show it as `path`, which must not exist. 0; -EEXIST; -errno: try again. */
int copy_finish(struct copy *c, const char *seed_path, const char *path, uint32_t db_pages);
void copy_abort(struct copy *c, const char *seed_path);

#endif
