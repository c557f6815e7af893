#include "daemon/base/pace.h"

#include <string.h>

static const char *const mode_name[] = {"spin", "adaptive", "sleep"};
static const char *const state_name[] = {"awake", "napping", "asleep"};

void pace_init(struct pace *p, enum pace_mode mode, bool tap)
{
	memset(p, 0, sizeof(*p));
	p->mode = mode;
	p->tap = tap;
	p->gap_ns = PACE_SLEEP_NS;
}

void pace_commits(struct pace *p, uint64_t now_ns, uint64_t n)
{
	uint64_t gap;

	if (n == 0)
		return;
	gap = (now_ns - p->last_ns) / n;
	if (gap > PACE_SLEEP_NS)
		gap = PACE_SLEEP_NS;
	p->last_ns = now_ns;
	p->begin_until_ns = 0;
	/* A burst after quiet counts from its second look on; a longer gap is forgotten fast. */
	if (p->gap_ns > 4 * gap)
		p->gap_ns = 4 * gap;
	else
		p->gap_ns += ((int64_t)gap - (int64_t)p->gap_ns) / 8;
}

void pace_woken(struct pace *p, uint64_t now_ns, bool checkpoint)
{
	if (!checkpoint) {
		p->begin_until_ns = now_ns + PACE_BEGIN_NS;
		return;
	}
	if (now_ns >= p->gate_until_ns) {
		p->gate_begin_ns = now_ns;
		p->backfill_ns = 0;
		p->checkpoint = PACE_NEAR;
	}
	p->gate_until_ns = now_ns + PACE_GATE_NS;
}

void pace_checkpointing(struct pace *p, uint64_t now_ns, enum pace_checkpoint how_far)
{
	p->checkpoint = how_far;
	if (how_far == PACE_NEAR)
		return;
	if (now_ns >= p->gate_until_ns || now_ns >= p->gate_begin_ns + PACE_CHECKPOINT_NS)
		return;
	p->gate_until_ns = now_ns + PACE_GATE_NS;
	if (!p->backfill_ns)
		p->backfill_ns = now_ns;
}

void pace_gated(struct pace *p, uint64_t now_ns)
{
	if (p->backfill_ns) {
		uint64_t took = now_ns - p->backfill_ns;

		if (took < p->backfill_takes_ns)
			p->backfill_takes_ns = took;
		else
			p->backfill_takes_ns += (took - p->backfill_takes_ns) / 8;
	}
	p->gate_until_ns = p->backfill_ns = 0;
}

static bool expecting(const struct pace *p, uint64_t now_ns)
{
	return now_ns < p->begin_until_ns || now_ns < p->gate_until_ns;
}

static enum pace_state adaptive(const struct pace *p, uint64_t now_ns)
{
	uint64_t quiet = now_ns - p->last_ns;

	if (now_ns < p->begin_until_ns)
		return PACE_AWAKE;
	if (now_ns < p->gate_until_ns)
		return p->checkpoint == PACE_OVERTAKEN ||
				       (p->backfill_ns &&
					now_ns < p->backfill_ns + p->backfill_takes_ns / 2) ?
			       PACE_NAPPING :
			       PACE_AWAKE;
	if (p->gap_ns < PACE_GAP_DENSE_NS && quiet < PACE_DENSE_QUIET_NS)
		return PACE_NAPPING;
	if (quiet < PACE_LINGER_NS)
		return PACE_AWAKE;
	if (p->gap_ns < PACE_GAP_SPIN_NS && quiet < PACE_SPIN_NS_MAX &&
	    quiet < 4 * p->gap_ns + PACE_NAP_NS)
		return PACE_AWAKE;
	return p->tap ? PACE_ASLEEP : PACE_NAPPING;
}

enum pace_state pace_decide(struct pace *p, uint64_t now_ns)
{
	if (p->mode == PACE_SPIN)
		p->state = PACE_AWAKE;
	else if (p->mode == PACE_ADAPTIVE)
		p->state = adaptive(p, now_ns);
	else if (expecting(p, now_ns))
		p->state = PACE_AWAKE;
	else
		p->state = p->tap ? PACE_ASLEEP : PACE_NAPPING;
	return p->state;
}

uint64_t pace_nap_ns(const struct pace *p, uint64_t now_ns)
{
	return now_ns - p->last_ns < PACE_QUIET_NS ? PACE_NAP_NS : PACE_NAP_QUIET_NS;
}

int pace_parse(const char *word, enum pace_mode *ret_mode)
{
	for (int i = 0; i < 3; i++) {
		if (!strcmp(word, mode_name[i])) {
			*ret_mode = (enum pace_mode)i;
			return 0;
		}
	}
	return -1;
}

const char *pace_mode_name(enum pace_mode mode)
{
	return mode_name[mode];
}

const char *pace_state_name(enum pace_state state)
{
	return state_name[state];
}
