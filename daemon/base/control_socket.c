#include "daemon/base/control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/control_socket.h"

#define CONTROL_BACKLOG 64

void control_address(struct sockaddr_un *a, const char *state_dir, int dir_fd)
{
	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (snprintf(a->sun_path, sizeof(a->sun_path), "%s/" CONTROL_SOCKET, state_dir) >=
	    (int)sizeof(a->sun_path))
		snprintf(a->sun_path, sizeof(a->sun_path), "/proc/self/fd/%d/" CONTROL_SOCKET,
			 dir_fd);
}

/* Make room for our socket: 0 when the name is free. We hold the directory's lock. */
static int remove_stale(const struct sockaddr_un *a, int dir_fd)
{
	struct stat st;
	int fd, err = 0;

	if (fstatat(dir_fd, CONTROL_SOCKET, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -ENOTSOCK;
	/* No walwire has it; but someone may, who does not know the lock. */
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)a, sizeof(*a)) == 0 || errno == EAGAIN)
		err = -EADDRINUSE;
	else if (errno != ECONNREFUSED && errno != ENOENT)
		err = -errno;
	close(fd);
	if (!err && unlinkat(dir_fd, CONTROL_SOCKET, 0) < 0 && errno != ENOENT)
		err = -errno;
	return err;
}

int control_listen(const char *state_dir, int *ret_dir_fd, int *ret_listen_fd)
{
	struct sockaddr_un a;
	int dir_fd, fd, err;

	if (mkdir(state_dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	dir_fd = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return -errno;
	if (flock(dir_fd, LOCK_EX | LOCK_NB) < 0) {
		err = errno == EWOULDBLOCK ? -EADDRINUSE : -errno;
		goto undo_dir;
	}
	control_address(&a, state_dir, dir_fd);
	err = remove_stale(&a, dir_fd);
	if (err)
		goto undo_dir;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		err = -errno;
		goto undo_dir;
	}
	/* Linux gives the name the mode that the socket has when it is bound. */
	if (fchmod(fd, 0600) < 0 || bind(fd, (const struct sockaddr *)&a, sizeof(a)) < 0) {
		err = -errno;
		goto undo_socket;
	}
	if (listen(fd, CONTROL_BACKLOG) < 0) {
		err = -errno;
		goto undo_name;
	}
	*ret_dir_fd = dir_fd;
	*ret_listen_fd = fd;
	return 0;
undo_name:
	unlinkat(dir_fd, CONTROL_SOCKET, 0);
undo_socket:
	close(fd);
undo_dir:
	close(dir_fd);
	return err;
}

/* The client */

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* A connected socket, or -errno. */
static int connect_to(const char *state_dir)
{
	struct timeval limit = {.tv_sec = CONTROL_ANSWER_MS / 1000};
	int dir_fd = open(state_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct sockaddr_un a;
	int fd, err = 0;

	if (dir_fd < 0)
		return -errno;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		err = -errno;
		goto undo_dir;
	}
	/* For connect() too, which waits while the line of clients is full. */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	control_address(&a, state_dir, dir_fd);
	while (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		if (errno == EINTR)
			continue;
		err = errno == EAGAIN ? -ETIMEDOUT : -errno;
		close(fd);
		goto undo_dir;
	}
undo_dir:
	close(dir_fd);
	return err ? err : fd;
}

/* Send the line and its newline at once. Whoever is refused may yet have been told why. */
static int send_line(int fd, const char *line)
{
	char text[CONTROL_LINE_MAX];
	size_t bytes = strlen(line);

	if (bytes >= CONTROL_LINE_MAX || memchr(line, '\n', bytes))
		return -EMSGSIZE;
	memcpy(text, line, bytes);
	text[bytes++] = '\n';
	if (send(fd, text, bytes, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET)
		return -errno;
	return 0;
}

/* One piece of the answer: its bytes, 0 at the end, or -errno. A descriptor goes to *fd, which
 * holds at most one. */
static ssize_t receive(int from, char *to, size_t bytes, uint64_t deadline_ms, int *fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} rights;
	struct iovec iov = {.iov_base = to, .iov_len = bytes};
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &rights,
		.msg_controllen = sizeof(rights),
	};
	struct pollfd p = {.fd = from, .events = POLLIN};
	struct cmsghdr *cmsg;
	uint64_t now = now_ms();
	ssize_t n;

	if (now >= deadline_ms)
		return -ETIMEDOUT;
	if (poll(&p, 1, (int)(deadline_ms - now)) <= 0)
		return -EAGAIN; /* the clock tells whether there is time left */
	n = recvmsg(from, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	cmsg = CMSG_FIRSTHDR(&m);
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS &&
	    cmsg->cmsg_len == CMSG_LEN(sizeof(int))) {
		if (*fd >= 0)
			close(*fd);
		memcpy(fd, CMSG_DATA(cmsg), sizeof(int));
	}
	return n;
}

/* Gather the whole answer in `memory`, a memfd. */
static int receive_all(int from, int memory, int *fd)
{
	uint64_t deadline_ms = now_ms() + CONTROL_ANSWER_MS;
	size_t total = 0;
	char bytes[16384], last = 0;

	for (;;) {
		ssize_t n = receive(from, bytes, sizeof(bytes), deadline_ms, fd);

		if (n == -EAGAIN || n == -EINTR)
			continue;
		if (n < 0)
			return (int)n;
		if (n == 0)
			return last == '\n' ? 0 : -ECONNRESET; /* an answer ends a line */
		total += (size_t)n;
		last = bytes[n - 1];
		if (total > CONTROL_ANSWER_MAX)
			return -EMSGSIZE;
		if (write(memory, bytes, (size_t)n) != n)
			return -EIO;
	}
}

int control_ask(const char *state_dir, const char *line, FILE **ret_answer, int *ret_fd)
{
	int memory, passed = -1, fd = connect_to(state_dir);
	FILE *answer;
	int err;

	if (fd < 0)
		return fd;
	err = send_line(fd, line);
	if (err)
		goto undo_socket;
	memory = memfd_create("walwire-answer", MFD_CLOEXEC);
	if (memory < 0) {
		err = -errno;
		goto undo_socket;
	}
	err = receive_all(fd, memory, &passed);
	if (err)
		goto undo_memory;
	answer = lseek(memory, 0, SEEK_SET) == 0 ? fdopen(memory, "r") : NULL;
	if (!answer) {
		err = -errno;
		goto undo_memory;
	}
	close(fd);
	*ret_answer = answer;
	if (ret_fd)
		*ret_fd = passed;
	else if (passed >= 0)
		close(passed);
	return 0;
undo_memory:
	close(memory);
	if (passed >= 0)
		close(passed);
undo_socket:
	close(fd);
	return err;
}
