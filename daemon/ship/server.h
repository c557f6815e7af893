/* server.h - serves a node's feeds to replicas.
 *
 * A connection's life, as its sender sees it:
 *
 *   HELLO      the first message is awaited, HELLO_MS at most
 *   ANSWER     our answer goes out; after a list or a refusal the connection ends
 *   SEEDING    a full copy, chunks and commits in turn (seed.h); ends in
 *   STREAMING  batches straight from the ring
 *   CLOSING    operations under way are awaited, then the socket is closed
 *
 * A sender holds the ring's bytes from `released` on. While the producer lacks space, a sender that
 * is more than half a ring behind is cut loose
 *   - when it has released nothing for READER_STALL_MS,
 *   - or less than half a ring in READER_WINDOW_MS,
 *   - or when more than READER_LOSING_RINGS rings wait in the WAL and it has not become less for
 *     READER_LOSING_MS: the application writes faster than this peer takes, and its WAL would grow
 *     without end.
 * Its replica comes back through the ring if that still reaches, else by a seed. Where readers are cut
 * again and again, seeds wait longer and longer, SEED_PAUSE_MS_MAX at most. */
#ifndef WALWIRE_SERVER_H
#define WALWIRE_SERVER_H

#include "daemon/base/loop.h"
#include "daemon/base/status.h"
#include "daemon/ship/seed.h"
#include "daemon/wire/feed.h"
#include "daemon/wire/message.h"

#define SENDERS_MAX	    64
#define SEEDS_MAX	    4	      /* full copies at the same time; more wait their turn */
#define READER_STALL_MS	    500	      /* see above */
#define READER_WINDOW_MS    2000
#define READER_LOSING_MS    1000
#define READER_LOSING_RINGS 4
#define SEED_PAUSE_MS_MIN   1000
#define SEED_PAUSE_MS_MAX   30000
#define CUT_FORGET_MS	    60000     /* without another: the next cut is a first one again */
#define HEARTBEAT_MS	    1000
#define SEND_BYTES_MAX	    (1u << 20)
#define SEND_ZC_BYTES_MIN   (32u << 10) /* below, copying is cheaper than the notification */
#define SEND_ZC_PENDING_MAX 16	      /* zero-copy sends whose pages the kernel still holds */
#define SEND_ZC_COPIED_MAX  4	      /* copied this often in a row: plain sends for this peer */
#define SEND_MARKS	    256	      /* remembered for lag; when full the newest two are merged */

enum sender_state { SENDER_FREE, SENDER_HELLO, SENDER_ANSWER, SENDER_SEEDING, SENDER_STREAMING,
		    SENDER_CLOSING };

enum sender_what { SENDING_NOTHING, SENDING_ANSWER, SENDING_RING, SENDING_CHUNK, SENDING_MARK };

struct sender;

struct send_op {
	struct loop_op op;
	struct sender *sender;
	uint64_t end; /* ring position after this send; 0: not from the ring */
	bool zc;
	bool first_done; /* its result is known; only the notification is awaited */
};

/* What went out together: to tell how far behind the peer's acks are. */
struct send_mark {
	uint64_t txid, pos, time_ns;
};

struct sender {
	struct server *server;
	struct feed *feed;
	enum sender_state state;
	int fd;
	int reader; /* of the feed's ring; -1 */
	char addr[80];
	uint64_t since_ns; /* of the state */
	uint64_t broken;   /* feed->broken when it began */

	struct loop_op recv;
	uint8_t in[4096];
	uint32_t in_bytes;
	struct ack ack;
	bool acked;
	uint64_t ack_ns; /* when the last one came */
	uint64_t delay_ns;

	/* sending: one at a time, but zero-copy sends wait for their notification behind it */
	struct send_op send[SEND_ZC_PENDING_MAX];
	unsigned int send_first, send_count; /* a queue: oldest first */
	bool sending;			     /* the newest has no result yet */
	const uint8_t *out;
	uint64_t out_bytes;
	enum sender_what what;
	bool zc;
	unsigned int zc_copied;
	bool zc_spared; /* a copy, once at least */
	uint8_t *small; /* HELLO_BYTES + names: answer, heartbeat, marks */
	struct position sent; /* after what was given to the kernel */
	uint32_t sent_db_pages;
	bool sent_partial;
	uint64_t sent_pos; /* ring */
	struct send_mark mark[SEND_MARKS];
	unsigned int mark_first, mark_count;
	uint64_t applied_pos; /* ring position that the peer's acks have reached */
	uint64_t released_ns;
	uint64_t window_ns, window_pos; /* when and where the present window began; 0: none */
	uint64_t losing_ns, waiting_least; /* since when this was the least that waited; 0: never */
	uint64_t heartbeat_ns;

	/* seeding */
	struct seed *seed;
	enum { SEED_MARK_BEGIN, SEED_ASK, SEED_WAIT, SEED_SEND, SEED_COMMITS, SEED_FINISH } step;
	bool seed_last;
	uint64_t seed_passes;
	bool seed_target_known;
	uint64_t seed_target;
};

struct server {
	struct loop *loop;
	struct worker *worker;
	struct feed **feeds;
	int feeds_count;
	int listen_fd;
	struct loop_op accept;
	uint64_t accept_again_ns; /* after a failure, for want of descriptors say */
	bool zc; /* the kernel can */
	bool stopping;
	struct counters *counters; /* of messages that belong to no database */
	int top; /* senders from here on are free: most nodes have few */
	struct sender sender[SENDERS_MAX];
	struct seed seed[SEEDS_MAX];
};

/* Listen at HOST:PORT ("[::1]:7077" for IPv6). `why` holds a sentence when it fails. */
int server_open(struct server *s, struct loop *loop, struct worker *worker, struct feed **feeds,
		int feeds_count, const char *listen, struct counters *counters, char *why,
		size_t why_bytes);

/* One step of everything that is connected; the work done. */
unsigned int server_do_work(struct server *s);

/* End all connections to this feed. */
void server_drop(struct server *s, const struct feed *feed);

/* Is anything of ours still open on this feed's database? */
bool server_uses(const struct server *s, const struct feed *feed);

/* Fill in the peers of `feed`. */
void server_status(const struct server *s, const struct feed *feed, struct db_status *d);

/* Any peer connected that is not caught up with what it should get? (Then do not sleep long.) */
bool server_busy(const struct server *s);

/* Begin to close everything; true when all is closed. Call until then, with loop_wait between. */
bool server_stop(struct server *s);
void server_close(struct server *s);

#endif
