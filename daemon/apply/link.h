/* link.h - one database's connection to its source: from the wire into the ring.
 *
 *   WAITING    until the next attempt (backoff, LINK_RETRY_MS_MAX at most)
 *   CONNECTING
 *   HELLO      ours goes out
 *   ANSWER     theirs is awaited
 *   STREAM     bytes are received straight into the ring, checked there, and published
 *   CLOSING    operations under way are awaited; then WAITING, or REFUSED for good
 *
 * What is received is the source's ring, byte for byte, so a batch lies where it will be read and
 * sent from. Nothing is published before its header, its pages' hashes and its place in the chain
 * have been checked: a damaged or foreign byte ends the connection, not the replica.
 *
 * Continuity. The next batch must begin (chain_before, txid - commits)
 *  - where the last one ended, or
 *  - at the last whole commit (the source begins the next commit anew), or
 *  - earlier, if one of its commits is our last one, with our chain: what follows that is new. */
#ifndef WALWIRE_LINK_H
#define WALWIRE_LINK_H

#include "daemon/apply/applier.h"
#include "daemon/wire/address.h"
#include "daemon/wire/message.h"

#define LINK_RETRY_MS_MIN  20
#define LINK_RETRY_MS_MAX  1000
#define LINK_ANSWER_MS	   5000
#define LINK_RECV_BYTES	   (4u << 20)
#define LINK_SILENT_MS	   10000 /* a source sends a heartbeat each second */
#define LINK_PARSE_BATCHES 64	 /* in one step */

enum link_state { LINK_WAITING, LINK_CONNECTING, LINK_HELLO, LINK_ANSWER, LINK_STREAM, LINK_CLOSING,
		  LINK_REFUSED };

struct link {
	struct feed *feed;
	struct loop *loop;
	struct applier *applier;
	const struct address *source;
	enum link_state state;
	int fd;
	uint64_t since_ns, retry_ms;
	struct loop_op connect, send, recv;
	uint8_t hello[HELLO_BYTES];
	uint8_t answer[HELLO_BYTES];
	uint32_t answer_bytes;
	uint64_t unparsed; /* bytes in the ring after what is published */
	uint64_t heard_ns;

	bool known; /* `at` is a position in the source's history */
	struct position at;	/* last whole commit received */
	uint64_t chain;		/* running, parts included */
	bool seeding;
	uint64_t seed_chain;

	bool ever_streamed;
	uint64_t source_txid; /* from its heartbeats and batches */
	uint64_t lag_ns;      /* as the source measured it */

	uint8_t ack[ACK_BYTES];
	struct ack acked;
	bool ack_sent;
	char sentence[WIRE_NAME_BYTES + 64]; /* why it waits or was refused */
	bool sentence_new;
};

void link_init(struct link *l, struct feed *feed, struct loop *loop, struct applier *applier,
	       const struct address *source);

/* One step; the work done. */
unsigned int link_do_work(struct link *l);

/* Begin to end the connection; true when nothing is under way any more. */
bool link_stop(struct link *l);

#endif
