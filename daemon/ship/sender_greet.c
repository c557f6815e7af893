#include "daemon/ship/sender_parts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct feed *find_feed(struct server *server, const char *name)
{
	for (int i = 0; i < server->feeds_count; i++)
		if (!strcmp(server->feeds[i]->name, name))
			return server->feeds[i];
	return NULL;
}

static void answer(struct sender *s, enum verdict verdict, const char *sentence)
{
	struct hello h = {.version = WIRE_VERSION, .what = (uint16_t)verdict};

	if (s->feed) {
		h.page_bytes = s->feed->page_bytes;
		h.at = s->feed->at;
		memcpy(h.db_id, s->feed->db_id, sizeof(h.db_id));
	}
	snprintf(h.text, sizeof(h.text), "%s", sentence);
	if (verdict == VERDICT_LIST)
		h.names = (uint32_t)s->server->feeds_count;
	hello_put(s->small, &h);
	sender_enter(s, SENDER_ANSWER);
	if (verdict == VERDICT_LIST) {
		for (int i = 0; i < s->server->feeds_count; i++) {
			uint8_t *to = s->small + HELLO_BYTES + (size_t)i * WIRE_NAME_BYTES;

			memset(to, 0, WIRE_NAME_BYTES);
			memcpy(to, s->server->feeds[i]->name, strlen(s->server->feeds[i]->name));
		}
	}
	out_small(s, HELLO_BYTES + (uint64_t)h.names * WIRE_NAME_BYTES);
}

static void answer_follow(struct sender *s, const struct hello *h)
{
	static const uint8_t none[DB_ID_BYTES];
	bool knows_us = memcmp(h->db_id, none, DB_ID_BYTES) != 0;
	struct feed *feed = find_feed(s->server, h->text);
	uint64_t pos;

	s->feed = feed;
	if (!feed) {
		answer(s, VERDICT_REFUSED, "there is no database of that name here");
		return;
	}
	if (!feed->open || feed->page_bytes == 0) {
		answer(s, VERDICT_LATER, "the database is not attached yet");
		return;
	}
	if (knows_us && memcmp(h->db_id, feed->db_id, DB_ID_BYTES)) {
		answer(s, VERDICT_REFUSED, "that is a copy of another database");
		return;
	}
	if (h->page_bytes && h->page_bytes != feed->page_bytes) {
		answer(s, VERDICT_REFUSED, "the page size differs");
		return;
	}
	if (knows_us && h->at.timeline > feed->at.timeline) {
		answer(s, VERDICT_REFUSED, "the replica is on a newer timeline than this node");
		return;
	}
	s->broken = feed->broken;
	s->released_ns = s->server->loop->now_ns;
	if (knows_us && h->at.timeline && feed_find(feed, h->at, &pos) == 0) {
		s->reader = ring_attach(&feed->ring, pos);
		if (s->reader < 0) {
			answer(s, VERDICT_LATER, "too many replicas of this database");
			return;
		}
		s->sent_pos = s->applied_pos = pos;
		s->sent = h->at;
		answer(s, VERDICT_CONTINUE, "");
		return;
	}
	/* A replica that is ahead of the replica it follows has commits that are nowhere else, maybe:
	 * it waits until this node has caught up. */
	if (knows_us && h->at.txid > feed->at.txid && !feed->own_clock) {
		answer(s, VERDICT_LATER, "this node is behind the replica");
		return;
	}
	if (s->server->loop->now_ns - feed->cut_ns < feed->seed_pause_ns) {
		answer(s, VERDICT_LATER, "replicas are too slow for what is written here; a full copy waits "
					 "a while");
		return;
	}
	for (int i = 0; i < SEEDS_MAX && !s->seed; i++)
		if (!s->server->seed[i].used)
			s->seed = &s->server->seed[i];
	if (!s->seed) {
		answer(s, VERDICT_LATER, "other replicas are being seeded");
		return;
	}
	seed_begin(s->seed, feed);
	s->step = SEED_MARK_BEGIN;
	answer(s, VERDICT_SEED, "");
}

void greet_take(struct sender *s)
{
	struct hello h;
	int err = hello_get(s->in, &h);

	if (err == -EPROTONOSUPPORT) {
		counter_add(s->server->counters, COUNTER_bad_messages, 1);
		answer(s, VERDICT_REFUSED, "another version of the protocol");
		return;
	}
	if (err) {
		counter_add(s->server->counters, COUNTER_bad_messages, 1);
		sender_close(s);
		return;
	}
	s->in_bytes -= HELLO_BYTES;
	memmove(s->in, s->in + HELLO_BYTES, s->in_bytes);
	if (h.what == HELLO_LIST)
		answer(s, VERDICT_LIST, "");
	else if (h.what == HELLO_FOLLOW && name_is_plain(h.text))
		answer_follow(s, &h);
	else
		answer(s, VERDICT_REFUSED, "that is not a request");
}
