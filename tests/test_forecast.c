/* test_forecast - when the next checkpoint is to be awaited, look by look. */
#include "tests/testing.h"

#include "daemon/capture/forecast.h"

static struct forecast f;

/* A life of the WAL, seen every `step` frames, that is checkpointed at `length` and ends there. The frames at
 * which it was first said to be due; 0: never. */
static uint32_t life(uint32_t length, uint32_t step, uint32_t ahead)
{
	uint32_t due = 0;

	forecast_new_life(&f);
	for (uint32_t at = 0; at < length; at += step) {
		forecast_look(&f, at, 0);
		if (!due && forecast_due(&f, ahead, false))
			due = at;
	}
	forecast_look(&f, length, length);
	return due;
}

/* Nothing is known at first: nothing is due, nothing can be relied on. */
static const char *test_unknown(void)
{
	memset(&f, 0, sizeof(f));
	EXPECT(!forecast_reliable(&f));
	for (uint32_t at = 0; at < 5000; at += 10) {
		forecast_look(&f, at, 0);
		EXPECT(!forecast_due(&f, 1000, false) && !forecast_reliable(&f));
	}
	return NULL;
}

/* One life teaches the length; looks that are far apart make it too short, never too long. */
static const char *test_learned(void)
{
	for (uint32_t step = 1; step < 300; step += 7) {
		memset(&f, 0, sizeof(f));
		EXPECT(life(1000, step, 0) == 0);
		EXPECT(f.known && f.length < 1000 && f.length + step >= 1000);
		for (int i = 0; i < 20; i++) {
			uint32_t due = life(1000, step, 2 * step);

			EXPECT(due && due < 1000 && due + 4 * step >= 1000);
			EXPECT(forecast_reliable(&f));
		}
	}
	return NULL;
}

/* Said once in a life, and again in the next. */
static const char *test_once(void)
{
	memset(&f, 0, sizeof(f));
	life(1000, 10, 0);
	for (int i = 0; i < 3; i++) {
		forecast_new_life(&f);
		forecast_look(&f, 995, 0);
		EXPECT(forecast_due(&f, 0, false));
		forecast_look(&f, 999, 0);
		EXPECT(!forecast_due(&f, 0, false));
	}
	return NULL;
}

/* Missed: the application now checkpoints with each commit. Due until something else keeps the
 * checkpoints from finishing. */
static const char *test_late(void)
{
	memset(&f, 0, sizeof(f));
	life(1000, 10, 0);
	forecast_new_life(&f);
	forecast_look(&f, 1004, 1003);
	for (uint32_t at = 1005; at < 1100; at++) {
		EXPECT(forecast_due(&f, 0, false) && forecast_due(&f, 0, false));
		forecast_look(&f, at, at - 1);
	}
	forecast_look(&f, 1200, 1100);
	EXPECT(!forecast_due(&f, 0, false));
	return NULL;
}

/* A checkpoint that is at work is told of once. One that died at work is not told of for ever. */
static const char *test_at_work(void)
{
	memset(&f, 0, sizeof(f));
	forecast_look(&f, 500, 0);
	EXPECT(forecast_due(&f, 0, true));
	for (int i = 0; i < 10; i++)
		EXPECT(!forecast_due(&f, 0, true));
	EXPECT(!forecast_due(&f, 0, false));
	EXPECT(forecast_due(&f, 0, true));
	return NULL;
}

/* An application that changes its mind, or was read wrongly, is followed. */
static const char *test_changed(void)
{
	memset(&f, 0, sizeof(f));
	life(1000, 10, 0);
	life(3000, 10, 20);
	EXPECT(f.length >= 2980 && f.length < 3000);
	life(200, 10, 20);
	EXPECT(f.length >= 180 && f.length < 200);
	forecast_new_life(&f);
	forecast_look(&f, 230, 0);
	EXPECT(forecast_reliable(&f));
	forecast_look(&f, 400, 0);
	EXPECT(!forecast_reliable(&f));
	return NULL;
}

/* A checkpoint after every commit: always due. */
static const char *test_every_commit(void)
{
	memset(&f, 0, sizeof(f));
	life(1, 1, 0);
	for (int i = 0; i < 10; i++) {
		forecast_new_life(&f);
		forecast_look(&f, 1, 0);
		EXPECT(forecast_due(&f, 0, false));
		forecast_look(&f, 1, 1);
		EXPECT(forecast_due(&f, 0, false));
	}
	return NULL;
}

int main(void)
{
	run("forecast_unknown", test_unknown);
	run("forecast_learned", test_learned);
	run("forecast_once", test_once);
	run("forecast_late", test_late);
	run("forecast_at_work", test_at_work);
	run("forecast_changed", test_changed);
	run("forecast_every_commit", test_every_commit);
	return failed;
}
