/* applier_parts.h - what the applier's files have in common; nobody else needs it.
 *
 *   applier.c         opening, steps
 *   applier_batch.c   a batch: a commit, or a piece of a seed
 *   applier_table.c   the page table beside the database
 *   applier_upkeep.c  checkpoints, syncs, new lives of the WAL */
#ifndef WALWIRE_APPLIER_PARTS_H
#define WALWIRE_APPLIER_PARTS_H

#include "daemon/apply/applier.h"

/* applier.c */
void applier_trouble(struct applier *a, int err); /* say what failed, rest for RETRY_MS */
void applier_save(struct applier *a);
void applier_note_new_life(void *ctx, const uint32_t salt[2]);
void applier_remove_file(struct applier *a);

/* applier_batch.c, the batch at a->pos: 0 or -errno; after an error the same batch can be applied again. */
int apply_seed(struct applier *a, const uint8_t *batch, const struct batch_header *h);
int apply_commit(struct applier *a, const uint8_t *batch, const struct batch_header *h);
void apply_rollback(struct applier *a); /* drop the parts of a commit that is not whole */

/* applier_table.c */
void table_open(struct applier *a, uint32_t page_bytes);
void table_trust(struct applier *a, enum page_table_trust trust);
void table_enter(struct applier *a, const uint8_t *frame, uint64_t hash);
void table_enter_batch(struct applier *a, const uint8_t *batch, const struct batch_header *h);
void table_enter_written(struct applier *a, uint32_t from, uint32_t to);
void table_complete(struct applier *a, uint32_t db_pages);
void table_catch_up(struct applier *a);
bool table_agrees(struct applier *a);

/* applier_upkeep.c */
void upkeep_init(struct applier *a);
void upkeep_ask(struct applier *a);   /* is there something for the worker? */
void upkeep_renew(struct applier *a); /* let the WAL begin a new life when it can */

#endif
