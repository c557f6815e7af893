#include "daemon/ship/server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/ship/sender.h"
#include "daemon/wire/address.h"
#include "daemon/wire/socket.h"

#define SMALL_BYTES  (HELLO_BYTES + DATABASES_MAX * WIRE_NAME_BYTES)
#define LISTEN_QUEUE 128
#define LISTEN_TRIES 200 /* of 10 ms: the kernel ends a killed node's accept a moment after the node */
#define ACCEPT_AGAIN_NS 100000000ull

static void want_peer(struct server *s)
{
	struct io_uring_sqe *sqe = loop_sqe(s->loop, &s->accept);

	io_uring_prep_accept(sqe, s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	io_uring_sqe_set_data(sqe, &s->accept);
}

static void accepted(struct loop_op *op, int res, uint32_t flags)
{
	struct server *s = (struct server *)((char *)op - offsetof(struct server, accept));
	struct sockaddr_storage sa;
	socklen_t bytes = sizeof(sa);
	struct sender *free_sender = NULL;
	char addr[80];

	(void)flags;
	if (s->stopping) {
		if (res >= 0)
			close(res);
		return;
	}
	if (res < 0) {
		s->accept_again_ns = s->loop->now_ns + ACCEPT_AGAIN_NS;
		return;
	}
	want_peer(s);
	for (int i = 0; i < SENDERS_MAX && !free_sender; i++)
		if (s->sender[i].state == SENDER_FREE)
			free_sender = &s->sender[i];
	if (!free_sender || getpeername(res, (struct sockaddr *)&sa, &bytes) < 0) {
		close(res);
		return;
	}
	socket_tune(res);
	address_print(&sa, addr, sizeof(addr));
	sender_start(free_sender, s, res, addr);
	if (free_sender >= &s->sender[s->top])
		s->top = (int)(free_sender - s->sender) + 1;
}

/* Does this kernel know zero-copy sends? Whether a peer profits shows later (sender.c). */
static bool probe_zc(struct loop *loop)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(&loop->uring);
	bool can = probe && io_uring_opcode_supported(probe, IORING_OP_SEND_ZC);

	io_uring_free_probe(probe);
	return can;
}

/* A listening socket or -errno. */
static int try_listen(const struct address *a)
{
	int fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, err;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (const struct sockaddr *)&a->sa, a->bytes) == 0 && listen(fd, LISTEN_QUEUE) == 0)
		return fd;
	err = -errno;
	close(fd);
	return err;
}

int server_open(struct server *s, struct loop *loop, struct worker *worker, struct feed **feeds,
		int feeds_count, const char *listen_at, struct counters *counters, char *why,
		size_t why_bytes)
{
	struct address a;
	uint8_t *small;
	int err;

	memset(s, 0, sizeof(*s));
	s->loop = loop;
	s->worker = worker;
	s->feeds = feeds;
	s->feeds_count = feeds_count;
	s->counters = counters;
	s->accept.done = accepted;
	s->listen_fd = -1;
	err = address_resolve(&a, listen_at, true, why, why_bytes);
	if (err)
		return err;
	for (int tries = 0; (err = try_listen(&a)) == -EADDRINUSE && tries < LISTEN_TRIES; tries++)
		usleep(10000);
	if (err < 0)
		goto say;
	s->listen_fd = err;
	small = mmap(NULL, SENDERS_MAX * SMALL_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (small == MAP_FAILED) {
		err = -ENOMEM;
		goto undo_fd;
	}
	for (int i = 0; i < SENDERS_MAX; i++)
		s->sender[i].small = small + (size_t)i * SMALL_BYTES;
	for (int i = 0; i < SEEDS_MAX; i++) {
		err = seed_init(&s->seed[i], worker);
		if (err)
			goto undo_small;
	}
	s->zc = probe_zc(loop);
	want_peer(s);
	return 0;
undo_small:
	for (int i = 0; i < SEEDS_MAX; i++)
		seed_exit(&s->seed[i]);
	munmap(small, SENDERS_MAX * SMALL_BYTES);
undo_fd:
	close(s->listen_fd);
say:
	snprintf(why, why_bytes, "cannot listen at %s: %s%s", listen_at, strerror(-err),
		 err == -EADDRINUSE ? "; choose another with --listen HOST:PORT" : "");
	return err;
}

unsigned int server_do_work(struct server *s)
{
	unsigned int work = 0;

	if (!s->accept.busy && !s->stopping && s->loop->now_ns >= s->accept_again_ns)
		want_peer(s);
	for (int i = 0; i < s->top; i++)
		if (s->sender[i].state != SENDER_FREE)
			work += sender_do_work(&s->sender[i]);
	while (s->top && s->sender[s->top - 1].state == SENDER_FREE)
		s->top--;
	return work;
}

void server_drop(struct server *s, const struct feed *feed)
{
	for (int i = 0; i < SENDERS_MAX; i++)
		if (s->sender[i].state != SENDER_FREE && s->sender[i].feed == feed)
			sender_close(&s->sender[i]);
}

bool server_uses(const struct server *s, const struct feed *feed)
{
	for (int i = 0; i < s->top; i++)
		if (s->sender[i].state != SENDER_FREE && s->sender[i].feed == feed)
			return true;
	for (int i = 0; i < SEEDS_MAX; i++)
		if (s->seed[i].used && s->seed[i].feed == feed)
			return true;
	return false;
}

void server_status(const struct server *s, const struct feed *feed, struct db_status *d)
{
	for (int i = 0; i < SENDERS_MAX; i++) {
		const struct sender *x = &s->sender[i];

		if (x->feed != feed || d->peers == RING_READERS_MAX)
			continue;
		if (x->state == SENDER_SEEDING || x->state == SENDER_STREAMING)
			sender_status(x, &d->peer[d->peers++]);
	}
}

bool server_busy(const struct server *s)
{
	for (int i = 0; i < s->top; i++) {
		const struct sender *x = &s->sender[i];

		if (x->state == SENDER_SEEDING || x->state == SENDER_CLOSING ||
		    x->state == SENDER_ANSWER)
			return true;
	}
	return false;
}

bool server_stop(struct server *s)
{
	bool all = true;

	if (!s->stopping) {
		s->stopping = true;
		loop_cancel(s->loop, &s->accept);
	}
	for (int i = 0; i < SENDERS_MAX; i++) {
		if (s->sender[i].state == SENDER_FREE)
			continue;
		sender_close(&s->sender[i]);
		sender_do_work(&s->sender[i]);
		all = all && s->sender[i].state == SENDER_FREE;
	}
	return all && !s->accept.busy;
}

void server_close(struct server *s)
{
	for (int i = 0; i < SEEDS_MAX; i++)
		seed_exit(&s->seed[i]);
	munmap(s->sender[0].small, SENDERS_MAX * SMALL_BYTES);
	close(s->listen_fd);
}
