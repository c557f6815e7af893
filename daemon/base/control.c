#include "daemon/base/control.h"
#include "daemon/base/control_request.h"
#include "daemon/base/control_socket.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* The one question at a time between the two threads, and who owns it (and the picture):
 *
 *      NONE     control thread
 *      ASKED    whoever takes it away: the loop (to SERVING) or the control thread (back to NONE)
 *      SERVING  the loop
 *      DONE     control thread
 */
enum ask_state { ASK_NONE, ASK_ASKED, ASK_SERVING, ASK_DONE };

enum client_state { CLIENT_FREE, CLIENT_READING, CLIENT_WAITING, CLIENT_WRITING };

struct client {
	enum client_state state;
	bool asked; /* WAITING: the outstanding question is asked for this one too */
	int fd;
	int pass_fd;	   /* goes with the answer's first byte; or -1 */
	uint64_t since_ms; /* last sign of life; WAITING: when it began to */
	uint64_t ticket;   /* order of the requests */
	struct request request;
	size_t line_bytes;
	char line[CONTROL_LINE_MAX];
	char *answer;
	size_t answer_bytes, answer_sent;
};

struct control {
	_Atomic uint32_t ask;
	struct node_status *picture; /* zeroed while ASKED */
	bool wants_ring;
	char ring_name[DB_NAME_MAX];
	int ring_fd;

	int wake_fd; /* the loop's, not ours to close */
	int done_fd; /* W loop: the question is answered */
	int stop_fd; /* W control_close() */
	int dir_fd, listen_fd;
	uint64_t deaf_until_ms; /* accepts no one: no descriptors left */
	uint64_t tickets;
	pthread_t thread;
	struct client client[CONTROL_CLIENTS_MAX];
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void event_write(int fd)
{
	uint64_t one = 1;
	ssize_t ignored = write(fd, &one, sizeof(one));

	(void)ignored; /* a full counter is as good a wakeup */
}

static void event_read(int fd)
{
	uint64_t n;
	ssize_t ignored = read(fd, &n, sizeof(n));

	(void)ignored;
}

/* Zero what a picture may have written, not the whole half megabyte. */
static void wipe(struct node_status *s)
{
	for (int i = 0; i < s->databases; i++) {
		struct db_status *d = &s->db[i];

		memset(d->peer, 0, (size_t)d->peers * sizeof(d->peer[0]));
		memset(d->counter, 0, sizeof(d->counter));
		memset(d, 0, offsetof(struct db_status, peer));
	}
	memset(s, 0, offsetof(struct node_status, db));
}

/* The two threads */

bool control_serve(struct control *c, const struct control_source *source)
{
	uint32_t asked = ASK_ASKED;
	struct node_status *s = c->picture;
	const struct db_status *d;

	/* A1: acquire, pairs with A2: the question and the zeroed picture are there. */
	if (atomic_load_explicit(&c->ask, memory_order_relaxed) != ASK_ASKED ||
	    !atomic_compare_exchange_strong_explicit(&c->ask, &asked, ASK_SERVING,
						     memory_order_acquire, memory_order_relaxed))
		return false;
	source->fill(source->ctx, s);
	assert(s->databases >= 0 && s->databases <= DATABASES_MAX);
	for (int i = 0; i < s->databases; i++)
		assert(s->db[i].peers >= 0 && s->db[i].peers <= RING_READERS_MAX);
	if (c->wants_ring) {
		d = request_database(s, c->ring_name);
		c->ring_fd = d ? source->ring_fd(source->ctx, d->name) : -ENOENT;
	}
	/* A3: release, pairs with A4: the whole picture is painted. */
	atomic_store_explicit(&c->ask, ASK_DONE, memory_order_release);
	event_write(c->done_fd);
	return true;
}

static void client_drop(struct client *k)
{
	close(k->fd);
	if (k->pass_fd >= 0)
		close(k->pass_fd);
	free(k->answer);
	memset(k, 0, sizeof(*k));
}

static void client_write(struct client *k)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} rights = {0};
	struct iovec iov = {
		.iov_base = k->answer + k->answer_sent,
		.iov_len = k->answer_bytes - k->answer_sent,
	};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	char rest[CONTROL_LINE_MAX];
	ssize_t n;

	if (k->pass_fd >= 0) {
		m.msg_control = &rights;
		m.msg_controllen = sizeof(rights);
		CMSG_FIRSTHDR(&m)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&m)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&m)->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &k->pass_fd, sizeof(int));
	}
	n = sendmsg(k->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			client_drop(k);
		return;
	}
	if (k->pass_fd >= 0) {
		close(k->pass_fd);
		k->pass_fd = -1;
	}
	k->since_ms = now_ms();
	k->answer_sent += (size_t)n;
	if (k->answer_sent < k->answer_bytes)
		return;
	/* Closing with something unread would reset the connection under the answer. */
	n = recv(k->fd, rest, sizeof(rest), MSG_DONTWAIT);
	client_drop(k);
}

/* Answer with what request_answer() says of the picture, or, without one, with `sentence`. */
static void client_answer(struct client *k, const struct node_status *s, const char *sentence,
			  int ring_fd)
{
	FILE *out = open_memstream(&k->answer, &k->answer_bytes);
	bool bad;

	if (!out) {
		client_drop(k);
		return;
	}
	if (s)
		request_answer(&k->request, s, ring_fd, out);
	else
		fprintf(out, "%s\n", sentence);
	bad = ferror(out);
	if (fclose(out) != 0 || bad) {
		client_drop(k);
		return;
	}
	k->state = CLIENT_WRITING;
	k->asked = false;
	k->since_ms = now_ms();
	client_write(k);
}

static void client_request(struct control *c, struct client *k, size_t bytes)
{
	request_parse(&k->request, k->line, bytes);
	if (k->request.kind == REQUEST_BAD) {
		client_answer(k, NULL,
			      "error that is no request; there are: status json|text, "
			      "wait NAME LEVEL TXID, ring NAME",
			      -1);
		return;
	}
	k->state = CLIENT_WAITING;
	k->since_ms = now_ms();
	k->ticket = c->tickets++;
}

static void client_read(struct control *c, struct client *k)
{
	ssize_t n = recv(k->fd, k->line + k->line_bytes, CONTROL_LINE_MAX - k->line_bytes,
			 MSG_DONTWAIT);
	char *newline;

	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			client_drop(k);
		return;
	}
	k->since_ms = now_ms();
	newline = memchr(k->line + k->line_bytes, '\n', (size_t)n);
	k->line_bytes += (size_t)n;
	if (newline)
		client_request(c, k, (size_t)(newline - k->line));
	else if (k->line_bytes == CONTROL_LINE_MAX)
		client_answer(k, NULL, "error the request is too long", -1);
	else if (n == 0 && k->line_bytes > 0)
		client_request(c, k, k->line_bytes); /* its end is as good as a newline */
	else if (n == 0)
		client_drop(k);
}

static void accept_one(struct control *c)
{
	struct client *k = c->client;
	int fd;

	while (k->state != CLIENT_FREE) {
		k++;
		assert(k < c->client + CONTROL_CLIENTS_MAX); /* else we had not polled */
	}
	fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
			c->deaf_until_ms = now_ms() + 100;
		return;
	}
	k->state = CLIENT_READING;
	k->fd = fd;
	k->pass_fd = -1;
	k->since_ms = now_ms();
}

/* Ask on behalf of everybody who waits; for a ring, of the one who has waited longest. */
static void ask(struct control *c)
{
	struct client *first = NULL;

	for (struct client *k = c->client; k < c->client + CONTROL_CLIENTS_MAX; k++)
		if (k->state == CLIENT_WAITING && (!first || k->ticket < first->ticket))
			first = k;
	if (!first)
		return;
	c->wants_ring = first->request.kind == REQUEST_RING;
	c->ring_fd = -ENOENT;
	memcpy(c->ring_name, first->request.name, DB_NAME_MAX);
	for (struct client *k = c->client; k < c->client + CONTROL_CLIENTS_MAX; k++)
		k->asked = k == first ||
			   (k->state == CLIENT_WAITING && k->request.kind != REQUEST_RING);
	/* A2: release, pairs with A1. */
	atomic_store_explicit(&c->ask, ASK_ASKED, memory_order_release);
	event_write(c->wake_fd);
}

static void take_answer(struct control *c)
{
	int ring_fd = c->wants_ring ? c->ring_fd : -ENOENT;

	for (struct client *k = c->client; k < c->client + CONTROL_CLIENTS_MAX; k++) {
		if (k->state != CLIENT_WAITING || !k->asked)
			continue;
		if (k->request.kind == REQUEST_RING && ring_fd >= 0) {
			k->pass_fd = ring_fd;
			client_answer(k, c->picture, NULL, ring_fd);
			ring_fd = -ENOENT;
		} else {
			client_answer(k, c->picture, NULL, ring_fd);
		}
	}
	if (ring_fd >= 0)
		close(ring_fd); /* who asked for it has gone */
	wipe(c->picture);
	atomic_store_explicit(&c->ask, ASK_NONE, memory_order_relaxed);
}

/* How long `k` may stay as it is. */
static uint64_t patience_ms(const struct client *k)
{
	return k->state == CLIENT_WAITING ? CONTROL_PICTURE_MS : CONTROL_CLIENT_MS;
}

static bool is_overdue(const struct client *k, uint64_t now)
{
	return k->state != CLIENT_FREE && now - k->since_ms >= patience_ms(k);
}

/* Withdraw a question that nobody is left to hear the answer of, then say so to those who waited:
 * in this order, so that whoever is told "busy" finds nothing of his left over. */
static void drop_overdue(struct control *c)
{
	uint64_t now = now_ms();
	uint32_t asked = ASK_ASKED;
	bool wanted = false;

	for (struct client *k = c->client; k < c->client + CONTROL_CLIENTS_MAX; k++)
		wanted |= k->state == CLIENT_WAITING && k->asked && !is_overdue(k, now);
	if (!wanted)
		atomic_compare_exchange_strong_explicit(&c->ask, &asked, ASK_NONE,
							memory_order_relaxed, memory_order_relaxed);
	for (struct client *k = c->client; k < c->client + CONTROL_CLIENTS_MAX; k++) {
		if (!is_overdue(k, now))
			continue;
		if (k->state == CLIENT_WAITING)
			client_answer(k, NULL, "busy the loop gave no answer in time", -1);
		else
			client_drop(k);
	}
}

enum { POLL_STOP, POLL_DONE, POLL_LISTEN, POLL_CLIENTS };

/* Say what to wait for; the timeout in ms, -1 for none. */
static int prepare_poll(const struct control *c, struct pollfd *p)
{
	uint64_t now = now_ms(), timeout = UINT64_MAX;
	bool deaf = now < c->deaf_until_ms, full = true;

	p[POLL_STOP] = (struct pollfd){.fd = c->stop_fd, .events = POLLIN};
	p[POLL_DONE] = (struct pollfd){.fd = c->done_fd, .events = POLLIN};
	if (deaf)
		timeout = c->deaf_until_ms - now;
	for (int i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		const struct client *k = &c->client[i];
		struct pollfd *at = &p[POLL_CLIENTS + i];
		uint64_t left = k->since_ms + patience_ms(k);

		*at = (struct pollfd){.fd = k->state == CLIENT_FREE ? -1 : k->fd};
		if (k->state == CLIENT_FREE) {
			full = false;
			continue;
		}
		at->events = k->state == CLIENT_READING	  ? POLLIN
			     : k->state == CLIENT_WRITING ? POLLOUT
							  : 0;
		left = left > now ? left - now : 0;
		timeout = left < timeout ? left : timeout;
	}
	p[POLL_LISTEN] = (struct pollfd){.fd = deaf || full ? -1 : c->listen_fd, .events = POLLIN};
	return timeout == UINT64_MAX ? -1 : (int)timeout;
}

static void *control_run(void *arg)
{
	struct pollfd p[POLL_CLIENTS + CONTROL_CLIENTS_MAX];
	struct control *c = arg;

	for (;;) {
		int timeout = prepare_poll(c, p);

		if (poll(p, POLL_CLIENTS + CONTROL_CLIENTS_MAX, timeout) < 0)
			continue; /* EINTR or a moment without memory */
		if (p[POLL_STOP].revents)
			return NULL;
		if (p[POLL_DONE].revents)
			event_read(c->done_fd);
		for (int i = 0; i < CONTROL_CLIENTS_MAX; i++) {
			struct client *k = &c->client[i];

			if (!p[POLL_CLIENTS + i].revents)
				continue;
			if (k->state == CLIENT_READING)
				client_read(c, k);
			else if (k->state == CLIENT_WRITING)
				client_write(k);
			else
				client_drop(k); /* it went away while it waited */
		}
		if (p[POLL_LISTEN].revents)
			accept_one(c);
		/* A4: acquire, pairs with A3. */
		if (atomic_load_explicit(&c->ask, memory_order_acquire) == ASK_DONE)
			take_answer(c);
		drop_overdue(c);
		if (atomic_load_explicit(&c->ask, memory_order_acquire) == ASK_NONE)
			ask(c);
	}
}

/* Opening and closing */

static int start_thread(struct control *c)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&c->thread, NULL, control_run, c);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		return -err;
	pthread_setname_np(c->thread, "walwire-control");
	return 0;
}

static void close_all(struct control *c)
{
	int fds[] = {c->listen_fd, c->dir_fd, c->done_fd, c->stop_fd};

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(c->picture);
	free(c);
}

int control_open(struct control **ret_c, const char *state_dir, int wake_fd)
{
	struct control *c = calloc(1, sizeof(*c));
	int err;

	if (!c)
		return -ENOMEM;
	c->wake_fd = wake_fd;
	c->ring_fd = c->listen_fd = c->dir_fd = -1;
	c->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->done_fd < 0 || c->stop_fd < 0) {
		err = -errno;
		goto undo_all;
	}
	c->picture = calloc(1, sizeof(*c->picture));
	if (!c->picture) {
		err = -ENOMEM;
		goto undo_all;
	}
	err = control_listen(state_dir, &c->dir_fd, &c->listen_fd);
	if (err)
		goto undo_all;
	err = start_thread(c);
	if (err)
		goto undo_socket;
	*ret_c = c;
	return 0;
undo_socket:
	unlinkat(c->dir_fd, CONTROL_SOCKET, 0);
undo_all:
	close_all(c);
	return err;
}

void control_close(struct control *c)
{
	if (!c)
		return;
	/* The name first: whoever comes now finds nobody rather than no answer. */
	unlinkat(c->dir_fd, CONTROL_SOCKET, 0);
	event_write(c->stop_fd);
	pthread_join(c->thread, NULL);
	if (atomic_load_explicit(&c->ask, memory_order_acquire) == ASK_DONE && c->wants_ring &&
	    c->ring_fd >= 0)
		close(c->ring_fd);
	for (struct client *k = c->client; k < c->client + CONTROL_CLIENTS_MAX; k++)
		if (k->state != CLIENT_FREE)
			client_drop(k);
	close_all(c);
}
