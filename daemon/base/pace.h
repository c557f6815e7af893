/* pace.h - when the pinned loop spins, naps and sleeps: interrupt when quiet, poll when busy.
 *
 *   ASLEEP    nothing for a while; the tap is armed, the first sign of a transaction wakes
 *   NAPPING   short pauses; only the beginning of a checkpoint wakes, and not even that where it can
 *             be foreseen
 *   AWAKE     polling; the tap is muted and the application pays nothing
 *
 * What wakes costs the application a wakeup, so it should pay once a burst, never once a commit.
 * Adaptive: commits that follow one another closely enough to be waited for (GAP_SPIN_NS) are
 * awaited spinning, because a nap would be longer than the wait. Commits so dense that a nap takes in
 * several (GAP_DENSE_NS) are taken in bunches: a nap then costs a little delay and saves most of
 * the processor. Anything rarer sleeps.
 *
 * The gate (daemon/wal/pin.h) can be opened only between the end of a checkpoint and the next commit, so
 * we are awake then; through the first half of what usually is a long checkpoint we nap, and through
 * all of one that other writers have overtaken. */
#ifndef WALWIRE_PACE_H
#define WALWIRE_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_NAP_NS	   250000ull   /* while commits are dense */
#define PACE_NAP_QUIET_NS  5000000ull  /* where nothing can wake us, after PACE_QUIET_NS */
#define PACE_QUIET_NS	   1000000000ull
#define PACE_GAP_DENSE_NS  150000ull   /* mean time between commits: below, nap */
#define PACE_DENSE_QUIET_NS 20000000ull /* so long dense commits may pause: a sync of the disk */
#define PACE_GAP_SPIN_NS   5000000ull  /* below, spin; above, sleep */
#define PACE_SPIN_NS_MAX   10000000ull /* without a commit: the longest spin */
#define PACE_BEGIN_NS	   2000000ull  /* after a wake: the transaction is under way */
#define PACE_LINGER_NS	   500000ull   /* after a commit: the next one of a burst may follow */
#define PACE_GATE_NS	   3000000ull  /* a checkpoint is near or just over: the longest spin */
#define PACE_CHECKPOINT_NS 50000000ull /* and while one goes on */
#define PACE_SLEEP_NS	   1000000000ull /* at the longest: then a look at everything */

enum pace_mode { PACE_SPIN, PACE_ADAPTIVE, PACE_SLEEP };
enum pace_state { PACE_AWAKE, PACE_NAPPING, PACE_ASLEEP };

/* What is seen of a checkpoint that was announced: nothing yet, or nothing more; it is at work; it is,
 * but more has been committed since it began, so that its end will not open the gate. */
enum pace_checkpoint { PACE_NEAR, PACE_AT_WORK, PACE_OVERTAKEN };

struct pace {
	enum pace_mode mode;
	enum pace_state state;
	bool tap;		/* something can wake us from sleep */
	uint64_t gap_ns;	/* mean time between commits, smoothed */
	uint64_t last_ns;	/* of the last commit seen */
	uint64_t begin_until_ns; /* awake so long: a transaction was announced */
	uint64_t gate_until_ns;	 /* awake so long: a checkpoint was announced, */
	uint64_t gate_begin_ns;	 /* then */
	uint64_t backfill_ns;	 /* since when it has been seen at work; 0: not yet */
	uint64_t backfill_takes_ns; /* as a rule, rather too little */
	enum pace_checkpoint checkpoint;
};

void pace_init(struct pace *p, enum pace_mode mode, bool tap);

/* `n` commits were seen at `now_ns` that had not been there at the last look. */
void pace_commits(struct pace *p, uint64_t now_ns, uint64_t n);

/* The tap woke us: stay until what was announced has come. */
void pace_woken(struct pace *p, uint64_t now_ns, bool checkpoint);

/* This is how far the checkpoint is that was announced. Its first half, and one that has been
 * overtaken, can be napped through. */
void pace_checkpointing(struct pace *p, uint64_t now_ns, enum pace_checkpoint how_far);

/* What a checkpoint was awaited for has been done. */
void pace_gated(struct pace *p, uint64_t now_ns);

/* What to do now that there is no work. */
enum pace_state pace_decide(struct pace *p, uint64_t now_ns);

/* How long to nap now. */
uint64_t pace_nap_ns(const struct pace *p, uint64_t now_ns);

/* "spin", "adaptive", "sleep": 0 or -1. */
int pace_parse(const char *word, enum pace_mode *ret_mode);
const char *pace_mode_name(enum pace_mode mode);
const char *pace_state_name(enum pace_state state);

/* Between two looks: leave the other half of the core, where there is one, and the line alone. */
static inline void cpu_pause(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
