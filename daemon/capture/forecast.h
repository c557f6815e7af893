/* forecast.h - when will the application checkpoint?
 *
 * SQLite checkpoints when the WAL has reached a length (PRAGMA wal_autocheckpoint), the same every
 * time; only then, and only in the few microseconds before the next commit, can the gate be opened. A
 * daemon that naps would sleep through it, and being woken at that moment means a tap that is
 * armed, which every commit pays for. So the length is learned from the wal-index: the WAL's length at
 * the last look before something was backfilled. A guess that is wrong costs a longer WAL or some
 * spinning, nothing else. */
#ifndef WALWIRE_FORECAST_H
#define WALWIRE_FORECAST_H

#include <stdbool.h>
#include <stdint.h>

#define FORECAST_LATE_FRAMES 16 /* so few not backfilled: the checkpoint was just now */

struct forecast {
	bool known;
	uint32_t length; /* of the WAL, frames: a checkpoint is expected from here on */
	uint32_t frames, backfilled; /* at the last look */
	bool announced;		     /* in this life of the WAL */
	bool seen;		     /* that one is at work */
};

/* The WAL begins anew, at no frames. */
void forecast_new_life(struct forecast *f);

/* This is what the wal-index says now. */
void forecast_look(struct forecast *f, uint32_t frames, uint32_t backfilled);

/* Is the moment near, `ahead` frames from now at most, or is a checkpoint at work? True once for
 * each; and again and again when it was missed and the application now checkpoints with every
 * commit. */
bool forecast_due(struct forecast *f, uint32_t ahead, bool backfilling);

/* Can it be relied on now? */
bool forecast_reliable(const struct forecast *f);

#endif
