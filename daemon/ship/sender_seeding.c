#include "daemon/ship/sender_parts.h"

/* After something was handed to the kernel: the order is settled, so the next chunk can be read
 * while it goes out. D1: no commit is sent until that chunk has been. */
static void ask_chunk(struct sender *s)
{
	seed_ask(s->seed);
	s->step = SEED_WAIT;
}

static unsigned int seed_chunk_step(struct sender *s)
{
	struct seed *seed = s->seed;

	if (seed->job.out)
		return 0;
	if (seed->err) {
		sender_close(s);
		return 1;
	}
	s->seed_last = seed->last;
	s->seed_passes = s->feed->passes;
	s->step = seed->last ? SEED_FINISH : SEED_COMMITS;
	if (seed->h.frames) {
		counter_add(s->feed->counters, COUNTER_seed_bytes, seed->h.bytes);
		out_chunk(s, seed_chunk(seed), seed->h.bytes);
		s->heartbeat_ns = s->server->loop->now_ns;
	}
	if (!s->seed_last && s->sent_pos == s->feed->visible_pos)
		ask_chunk(s);
	return 1;
}

unsigned int seeding_step(struct sender *s)
{
	struct feed *feed = s->feed;

	switch (s->step) {
	case SEED_MARK_BEGIN:
		if (feed->visible_pos < feed->commit_pos)
			return 0;
		s->reader = ring_attach(&feed->ring, feed->commit_pos);
		if (s->reader < 0) {
			sender_close(s);
			return 1;
		}
		counter_add(feed->counters, COUNTER_seeds, 1);
		s->sent_pos = s->applied_pos = feed->commit_pos;
		s->sent = feed->at;
		s->sent_db_pages = feed->db_pages;
		s->sent_partial = false;
		out_header(s, BATCH_SEED, BATCH_SEED_BEGIN, s->sent, 0, s->sent_db_pages);
		ask_chunk(s);
		return 1;
	case SEED_WAIT:
		return seed_chunk_step(s);
	case SEED_COMMITS: {
		uint64_t behind = feed->visible_pos - s->sent_pos;

		out_range(s, feed->visible_pos);
		if (behind <= feed->ring.shared->size / 4)
			ask_chunk(s);
		return 1;
	}
	case SEED_FINISH:
		if (!s->seed_target_known && feed->passes > s->seed_passes + 1) {
			s->seed_target_known = true;
			s->seed_target = feed->at.txid;
		}
		if (s->seed_target_known && !s->sent_partial && s->sent.txid >= s->seed_target) {
			out_header(s, BATCH_SEED, BATCH_SEED_END, s->sent, s->seed->chain,
				    s->sent_db_pages);
			seed_end(s->seed);
			s->seed = NULL;
			sender_enter(s, SENDER_STREAMING);
			return 1;
		}
		return out_range(s, feed->visible_pos);
	default:
		return 0;
	}
}
