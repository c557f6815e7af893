/* capture_parts.h - what the capture's files have in common; nobody else needs it.
 *
 *   capture.c         a look at the wal-index, reads, batches
 *   capture_attach.c  opening and closing, and where history goes on after an absence */
#ifndef WALWIRE_CAPTURE_PARTS_H
#define WALWIRE_CAPTURE_PARTS_H

#include "daemon/capture/capture.h"

void capture_save(struct capture *c);
struct position capture_record_position(const struct capture_record *r);
/* History may have a gap here: begin a new one at the WAL's present end. */
void capture_break(struct capture *c, const struct wal_index_header *h);
void capture_read_done(struct loop_op *op, int res, uint32_t flags);

#endif
