#include "daemon/cmd/node.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/cmd/cmd.h"
#include "daemon/wire/message.h"
#include "shm/segment.h"

static void want_poll(struct node *n, struct loop_op *op, int fd)
{
	struct io_uring_sqe *sqe = loop_sqe(&n->loop, op);

	io_uring_prep_poll_add(sqe, fd, POLLIN);
	io_uring_sqe_set_data(sqe, op);
}

static void wake_done(struct loop_op *op, int res, uint32_t flags)
{
	struct node *n = (struct node *)((char *)op - offsetof(struct node, wake_op));
	uint64_t count;

	(void)flags;
	if (res < 0)
		return;
	/* Read before the look that follows: a later write wakes again. */
	if (read(n->wake_fd, &count, sizeof(count)) > 0)
		n->wake_pending = true;
	want_poll(n, &n->wake_op, n->wake_fd);
}

static void signal_done(struct loop_op *op, int res, uint32_t flags)
{
	struct node *n = (struct node *)((char *)op - offsetof(struct node, signal_op));

	(void)flags;
	if (res > 0)
		n->stop = true;
}

/* The directory and all its parents that are missing. */
static int make_dir(const char *path)
{
	char part[DB_PATH_MAX];
	size_t n = strlen(path);

	if (n == 0 || n >= sizeof(part))
		return -ENAMETOOLONG;
	for (size_t i = 1; i <= n; i++) {
		if (path[i] != '/' && path[i] != 0)
			continue;
		memcpy(part, path, i);
		part[i] = 0;
		if (mkdir(part, 0700) < 0 && errno != EEXIST)
			return -errno;
	}
	return 0;
}

static bool open_signals(struct node *n)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* A file that grows past a limit fails with an errno instead. */
	signal(SIGXFSZ, SIG_IGN);
	n->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return n->signal_fd >= 0;
}

bool node_open(struct node *n, const char *state_dir, int64_t cpu)
{
	int err;

	memset(n, 0, sizeof(*n));
	n->state_dir = state_dir;
	n->wake_op.done = wake_done;
	n->signal_op.done = signal_done;
	err = make_dir(state_dir);
	if (err) {
		log_line("cannot make the state directory '%s': %s; choose one with --state-dir",
			 state_dir, strerror(-err));
		return false;
	}
	n->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (n->wake_fd < 0 || !open_signals(n)) {
		log_line("cannot start: %s", strerror(errno));
		return false;
	}
	/* The threads first: they are not to be pinned with the loop. */
	err = worker_open(&n->worker, n->wake_fd);
	if (err) {
		log_line("cannot start a thread: %s", strerror(-err));
		goto undo_fds;
	}
	err = control_open(&n->control, state_dir, n->wake_fd);
	if (err) {
		log_line(err == -EADDRINUSE ?
				 "another walwire uses the state directory '%s'%s; choose one with "
				 "--state-dir" :
				 "cannot open the control socket in '%s': %s; choose one with "
				 "--state-dir",
			 state_dir, err == -EADDRINUSE ? "" : strerror(-err));
		goto undo_worker;
	}
	if (cpu >= 0) {
		err = loop_pin((int)cpu);
		if (err) {
			log_line("cannot pin to CPU %lld: %s; see: lscpu", (long long)cpu,
				 strerror(-err));
			goto undo_control;
		}
	}
	err = loop_open(&n->loop);
	if (err) {
		log_line("cannot set up io_uring: %s; Linux 6.1 or later is needed, with "
			 "kernel.io_uring_disabled=0",
			 strerror(-err));
		goto undo_control;
	}
	want_poll(n, &n->wake_op, n->wake_fd);
	want_poll(n, &n->signal_op, n->signal_fd);
	return true;
undo_control:
	control_close(n->control);
undo_worker:
	worker_close(&n->worker);
undo_fds:
	close(n->wake_fd);
	return false;
}

/* The worker is stopped by the caller, before what its jobs use is closed. */
void node_close(struct node *n)
{
	control_close(n->control);
	loop_close(&n->loop);
	close(n->signal_fd);
	close(n->wake_fd);
}

unsigned int node_cycle(struct node *n)
{
	n->loop.now_ns = clock_now_ns();
	n->cycle_begin_ns = n->loop.now_ns;
	return loop_reap(&n->loop) + worker_collect(&n->worker);
}

bool node_check_ring(uint64_t *ring_bytes)
{
	if (*ring_bytes < RING_BYTES_MIN || *ring_bytes > RING_BYTES_MAX ||
	    (*ring_bytes & (*ring_bytes - 1))) {
		log_line("--ring-bytes must be a power of two from 4M to 16G; the default is 64M");
		return false;
	}
	return true;
}

bool node_check_cpu(const char *text, int64_t *ret_cpu)
{
	char *end;

	*ret_cpu = -1;
	if (!text)
		return true;
	*ret_cpu = strtol(text, &end, 10);
	if (*end || *ret_cpu < 0 || *ret_cpu >= sysconf(_SC_NPROCESSORS_CONF)) {
		log_line("there is no CPU '%s'; give a number from 0 to %ld with --cpu", text,
			 sysconf(_SC_NPROCESSORS_CONF) - 1);
		return false;
	}
	return true;
}

bool node_db_name(const char *path, char name[DB_NAME_MAX])
{
	const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;

	if (strlen(path) >= DB_PATH_MAX - 16 || !name_is_plain(base)) {
		log_line("'%s' cannot be a database's name; it must not be empty, hidden or longer "
			 "than %d bytes",
			 path, DB_NAME_MAX - 9);
		return false;
	}
	strcpy(name, base);
	return true;
}
