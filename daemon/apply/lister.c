#include "daemon/apply/lister.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "daemon/wire/message.h"

static int receive(int fd, uint8_t *to, size_t bytes)
{
	while (bytes) {
		ssize_t n = recv(fd, to, bytes, MSG_WAITALL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		if (n == 0)
			return -EPROTO; /* it hung up on us: a stranger */
		to += n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int ask(struct lister *l, int fd)
{
	struct hello h = {.version = WIRE_VERSION, .what = HELLO_LIST};
	uint8_t bytes[HELLO_BYTES];
	int err;

	hello_put(bytes, &h);
	if (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) != (ssize_t)sizeof(bytes))
		return -EPIPE;
	err = receive(fd, bytes, sizeof(bytes));
	if (!err)
		err = hello_get(bytes, &h);
	if (err)
		return err;
	if (h.what != VERDICT_LIST)
		return h.what == VERDICT_REFUSED ? -EPROTONOSUPPORT : -EPROTO;
	for (uint32_t i = 0; i < h.names; i++) {
		char *name = l->name[l->count];

		err = receive(fd, (uint8_t *)name, WIRE_NAME_BYTES);
		if (err)
			return err;
		name[WIRE_NAME_BYTES - 1] = 0;
		/* It becomes a file name here. */
		if (!name_is_plain(name))
			return -EPROTO;
		l->count++;
	}
	return 0;
}

static void run(struct job *job)
{
	struct lister *l = (struct lister *)job;
	struct timeval tv = {.tv_sec = LISTER_TIMEOUT_MS / 1000};
	int fd = socket(l->source->sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	l->count = 0;
	if (fd < 0) {
		l->err = -errno;
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	if (connect(fd, (const struct sockaddr *)&l->source->sa, l->source->bytes) < 0)
		l->err = errno == EINPROGRESS ? -ETIMEDOUT : -errno;
	else
		l->err = ask(l, fd);
	close(fd);
}

void lister_init(struct lister *l, const struct address *source, void (*done)(struct job *job))
{
	memset(l, 0, sizeof(*l));
	l->source = source;
	l->job.run = run;
	l->job.done = done;
}
