/* test_pace - awake, napping or asleep, by a clock of the test's own. */
#include "tests/testing.h"

#include "daemon/base/pace.h"

#define US 1000ull
#define MS 1000000ull
#define S  1000000000ull

static struct pace p;
static uint64_t now;

static void start(enum pace_mode mode, bool tap)
{
	pace_init(&p, mode, tap);
	now = 1000 * S;
}

static enum pace_state after(uint64_t ns)
{
	now += ns;
	return pace_decide(&p, now);
}

/* Commits `gap` apart, each seen at once. The state just before the last one. */
static enum pace_state commits(int n, uint64_t gap)
{
	enum pace_state s = PACE_ASLEEP;

	while (n--) {
		s = after(gap);
		pace_commits(&p, now, 1);
	}
	return s;
}

/* spin never rests. */
static const char *test_spin(void)
{
	start(PACE_SPIN, true);
	EXPECT(after(0) == PACE_AWAKE && after(100 * S) == PACE_AWAKE);
	commits(100, 10 * US);
	EXPECT(after(0) == PACE_AWAKE && after(S) == PACE_AWAKE && p.state == PACE_AWAKE);
	return NULL;
}

/* At the beginning and after a quiet spell: asleep if something can wake us, else naps. */
static const char *test_quiet(void)
{
	for (int mode = PACE_ADAPTIVE; mode <= PACE_SLEEP; mode++) {
		for (int tap = 0; tap < 2; tap++) {
			enum pace_state rest = tap ? PACE_ASLEEP : PACE_NAPPING;

			start((enum pace_mode)mode, tap);
			EXPECT(after(0) == rest && after(10 * S) == rest);
			commits(1000, 50 * US);
			EXPECT(after(PACE_DENSE_QUIET_NS) == rest);
			commits(1000, 2 * MS);
			EXPECT(after(10 * PACE_GAP_SPIN_NS) == rest);
			EXPECT(after(10 * S) == rest);
		}
	}
	return NULL;
}

/* Adaptive: dense commits are taken in bunches, with naps. */
static const char *test_dense(void)
{
	start(PACE_ADAPTIVE, true);
	commits(200, PACE_GAP_DENSE_NS / 3);
	EXPECT(after(PACE_GAP_DENSE_NS / 3) == PACE_NAPPING);
	/* Seen several at a time, as a nap brings them. */
	for (int i = 0; i < 100; i++) {
		EXPECT(after(PACE_NAP_NS) == PACE_NAPPING);
		pace_commits(&p, now, PACE_NAP_NS / (PACE_GAP_DENSE_NS / 3));
	}
	return NULL;
}

/* Adaptive: commits that a nap would take too long for are awaited. */
static const char *test_close_together(void)
{
	for (uint64_t gap = 2 * PACE_GAP_DENSE_NS; gap < PACE_GAP_SPIN_NS; gap *= 2) {
		start(PACE_ADAPTIVE, true);
		commits(200, gap);
		EXPECT(commits(1, gap) == PACE_AWAKE);
		EXPECT(after(gap / 2) == PACE_AWAKE && after(gap / 2) == PACE_AWAKE);
	}
	return NULL;
}

/* Adaptive: rare ones are slept through, and each is paid with one wakeup. */
static const char *test_rare(void)
{
	start(PACE_ADAPTIVE, true);
	for (int i = 0; i < 50; i++) {
		EXPECT(after(4 * PACE_GAP_SPIN_NS) == PACE_ASLEEP);
		pace_woken(&p, now, false);
		EXPECT(after(100 * US) == PACE_AWAKE); /* the transaction is under way */
		pace_commits(&p, now, 1);
	}
	return NULL;
}

/* Woken, we stay until what was announced has come, and not for ever. */
static const char *test_woken(void)
{
	for (int mode = PACE_ADAPTIVE; mode <= PACE_SLEEP; mode++) {
		start((enum pace_mode)mode, true);
		EXPECT(after(S) == PACE_ASLEEP);
		pace_woken(&p, now, false);
		EXPECT(after(0) == PACE_AWAKE && after(PACE_BEGIN_NS - 1) == PACE_AWAKE);
		EXPECT(after(1) == PACE_ASLEEP);
		pace_woken(&p, now, true);
		EXPECT(after(PACE_GATE_NS - 1) == PACE_AWAKE && after(1) == PACE_ASLEEP);
		pace_woken(&p, now, true);
		EXPECT(after(10 * US) == PACE_AWAKE);
		pace_gated(&p, now);
		EXPECT(after(0) == PACE_ASLEEP);
	}
	return NULL;
}

/* The gate being done does not end the wait for a transaction, nor the other way round. */
static const char *test_both(void)
{
	start(PACE_SLEEP, true);
	pace_woken(&p, now, false);
	pace_woken(&p, now, true);
	pace_gated(&p, now);
	EXPECT(after(PACE_BEGIN_NS / 2) == PACE_AWAKE);
	pace_woken(&p, now, true);
	pace_commits(&p, now, 1);
	EXPECT(after(PACE_GATE_NS / 2) == PACE_AWAKE);
	return NULL;
}

/* While the checkpoint goes on it is awaited, and what is known to take long is napped through first;
 * but not for ever. */
static const char *test_checkpointing(void)
{
	start(PACE_ADAPTIVE, true);
	for (int i = 0; i < 50; i++) {
		commits(100, 20 * US);
		pace_woken(&p, now, true);
		for (int ms = 0; ms < 10; ms++) {
			enum pace_state s = after(MS);

			EXPECT(s != PACE_ASLEEP);
			EXPECT(i < 40 || s == (ms > 0 && ms <= 4 ? PACE_NAPPING : PACE_AWAKE));
			pace_checkpointing(&p, now, PACE_AT_WORK);
		}
		pace_gated(&p, now);
		EXPECT(after(0) == PACE_NAPPING);
	}
	pace_woken(&p, now, true);
	for (int ms = 0; ms < 100; ms++) {
		pace_checkpointing(&p, now, PACE_AT_WORK);
		after(MS);
	}
	EXPECT(now >= p.gate_until_ns && after(0) == PACE_ASLEEP);
	pace_checkpointing(&p, now, PACE_AT_WORK);
	EXPECT(after(0) == PACE_ASLEEP);
	return NULL;
}

/* A checkpoint that other writers have overtaken is napped through; the next one, which may be the last,
 * is awaited. */
static const char *test_overtaken(void)
{
	start(PACE_ADAPTIVE, true);
	commits(100, 20 * US);
	for (int i = 0; i < 3; i++) {
		pace_woken(&p, now, true);
		EXPECT(after(0) == PACE_AWAKE);
		pace_checkpointing(&p, now, PACE_OVERTAKEN);
		EXPECT(after(0) == PACE_NAPPING && after(PACE_NAP_NS) == PACE_NAPPING);
		pace_checkpointing(&p, now, PACE_NEAR);
		EXPECT(after(0) == PACE_AWAKE);
		pace_checkpointing(&p, now, PACE_OVERTAKEN);
		EXPECT(after(0) == PACE_NAPPING);
		pace_gated(&p, now);
		now += PACE_GATE_NS;
		commits(10, 20 * US);
	}
	start(PACE_SPIN, true);
	pace_woken(&p, now, true);
	pace_checkpointing(&p, now, PACE_OVERTAKEN);
	EXPECT(after(0) == PACE_AWAKE);
	return NULL;
}

/* Dense commits may pause for a sync of the disk without our going to sleep. */
static const char *test_dense_pause(void)
{
	start(PACE_ADAPTIVE, true);
	commits(200, 20 * US);
	EXPECT(after(PACE_DENSE_QUIET_NS - 1) == PACE_NAPPING && after(1) == PACE_ASLEEP);
	return NULL;
}

/* A burst after quiet costs one wakeup: its second commit already finds us awake. */
static const char *test_burst(void)
{
	start(PACE_ADAPTIVE, true);
	EXPECT(after(10 * S) == PACE_ASLEEP);
	pace_woken(&p, now, false);
	EXPECT(after(100 * US) == PACE_AWAKE);
	pace_commits(&p, now, 1);
	for (int i = 0; i < 20; i++) {
		EXPECT(after(200 * US) != PACE_ASLEEP);
		pace_commits(&p, now, 1);
	}
	return NULL;
}

/* No commits are no commits; a clock far away does no harm. */
static const char *test_edges(void)
{
	struct pace before;

	start(PACE_ADAPTIVE, true);
	before = p;
	pace_commits(&p, now, 0);
	EXPECT(!memcmp(&before, &p, sizeof(p)));
	pace_commits(&p, now, 1);
	pace_commits(&p, now, 1000000);
	pace_commits(&p, UINT64_MAX / 2, 1);
	EXPECT(p.gap_ns <= PACE_SLEEP_NS);
	return NULL;
}

/* Names and words are each other's. */
static const char *test_names(void)
{
	for (int m = 0; m < 3; m++) {
		enum pace_mode back;

		EXPECT(pace_parse(pace_mode_name((enum pace_mode)m), &back) == 0 && (int)back == m);
	}
	enum pace_mode untouched = PACE_SLEEP;

	EXPECT(pace_parse("", &untouched) == -1 && pace_parse("Spin", &untouched) == -1);
	EXPECT(untouched == PACE_SLEEP);
	EXPECT(!strcmp(pace_state_name(PACE_ASLEEP), "asleep"));
	return NULL;
}

int main(void)
{
	run("pace_spin", test_spin);
	run("pace_quiet", test_quiet);
	run("pace_dense", test_dense);
	run("pace_close_together", test_close_together);
	run("pace_rare", test_rare);
	run("pace_woken", test_woken);
	run("pace_both", test_both);
	run("pace_checkpointing", test_checkpointing);
	run("pace_overtaken", test_overtaken);
	run("pace_dense_pause", test_dense_pause);
	run("pace_burst", test_burst);
	run("pace_edges", test_edges);
	run("pace_names", test_names);
	return failed;
}
