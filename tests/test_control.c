/* test_control - the control socket: what it answers, and to whom it does not give way.
 *
 * The test is the loop: it waits for the wake eventfd and steps control_serve() by hand. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/base/control.h"
#include "daemon/base/control_socket.h"

#define LIMIT_MS 30000 /* longer than anything may take; never measured against */

#define STRING(x)  STRING_(x)
#define STRING_(x) #x
#define EXPECT(c)                                                \
	do {                                                     \
		if (!(c))                                        \
			return "line " STRING(__LINE__) ": " #c; \
	} while (0)

/* A node made of one picture. */
struct node {
	char dir[4096];
	int wake_fd;
	struct control *control;
	struct control_source source;
	struct node_status picture;
	bool dirty;	/* a picture was to be painted into memory that was not zero */
	int ring_error; /* what ring_fd() says instead of a descriptor */
	char ring_name[DB_NAME_MAX];
	int fills;
};

static struct node node;

static bool is_zero(const void *memory, size_t bytes)
{
	const char *s = memory;

	return s[0] == 0 && memcmp(s, s + 1, bytes - 1) == 0;
}

static void fill(void *ctx, struct node_status *s)
{
	struct node *n = ctx;

	n->fills++;
	n->dirty |= !is_zero(s, sizeof(*s));
	*s = n->picture;
}

static int ring_fd(void *ctx, const char *name)
{
	struct node *n = ctx;
	int fd;

	strcpy(n->ring_name, name);
	if (n->ring_error)
		return n->ring_error;
	fd = memfd_create("ring", MFD_CLOEXEC);
	return fd >= 0 && write(fd, "the ring", 8) == 8 ? fd : -errno;
}

static struct db_status *add_database(const char *name, uint64_t txid)
{
	struct db_status *d = &node.picture.db[node.picture.databases++];

	strcpy(d->name, name);
	strcpy(d->state, "attached");
	d->txid = txid;
	d->received = d->applied = d->durable = d->lag_ns = STATUS_UNKNOWN;
	return d;
}

static void add_peer(struct db_status *d, uint64_t received, uint64_t applied, uint64_t durable)
{
	d->peer[d->peers++] = (struct peer_status){
		.addr = "127.0.0.1:9",
		.state = "streaming",
		.received = received,
		.applied = applied,
		.durable = durable,
	};
}

/* A primary without databases, in a directory of its own. */
static int node_open(void)
{
	memset(&node, 0, sizeof(node));
	strcpy(node.dir, "/tmp/walwire-test-XXXXXX");
	if (!mkdtemp(node.dir))
		return -errno;
	strcat(node.dir, "/state");
	strcpy(node.picture.role, "primary");
	node.source = (struct control_source){fill, ring_fd, &node};
	node.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return control_open(&node.control, node.dir, node.wake_fd);
}

static void node_close(void)
{
	control_close(node.control);
	close(node.wake_fd);
	rmdir(node.dir);
	*strrchr(node.dir, '/') = 0;
	rmdir(node.dir);
}

static bool serve(void)
{
	uint64_t n;

	if (read(node.wake_fd, &n, sizeof(n)) < 0)
		return false;
	return control_serve(node.control, &node.source);
}

static int client_open(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a;

	control_address(&a, node.dir, -1);
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static char text[1 << 20]; /* the last answer */

/* Serve until the client's answer has ended; its first line, "" for none. `piece` bytes at a time.
 * The client is closed. */
static const char *answer_of(int fd, size_t piece)
{
	struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = node.wake_fd, .events = POLLIN}};
	size_t used = 0;
	ssize_t n;

	text[0] = 0;
	while (used < sizeof(text) - piece && poll(p, 2, LIMIT_MS) > 0) {
		if (p[1].revents)
			serve();
		if (!p[0].revents)
			continue;
		n = read(fd, text + used, piece);
		if (n <= 0)
			break;
		used += (size_t)n;
		text[used] = 0;
	}
	close(fd);
	return text;
}

static const char *ask(const char *line)
{
	int fd = client_open();

	if (fd < 0 || write(fd, line, strlen(line)) != (ssize_t)strlen(line))
		return "";
	return answer_of(fd, 4096);
}

static int open_descriptors(void)
{
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* The state directory is made for its owner alone, and so is the socket, which vanishes at the end;
 * status comes as JSON and as text. */
static const char *test_status(void)
{
	char path[4200];
	struct stat st;

	EXPECT(stat(node.dir, &st) == 0 && (st.st_mode & 07777) == 0700);
	snprintf(path, sizeof(path), "%s/control.sock", node.dir);
	EXPECT(stat(path, &st) == 0 && (st.st_mode & 07777) == 0600);
	EXPECT(!serve());
	add_database("app.db", 12);
	EXPECT(strncmp(ask("status json\n"), "ok\n{\"role\": \"primary\"", 21) == 0);
	EXPECT(strstr(text, "\"name\": \"app.db\"") && text[strlen(text) - 2] == '}');
	EXPECT(strncmp(ask("status text\n"), "ok\nprimary\n", 11) == 0);
	EXPECT(strstr(text, "app.db: attached"));
	EXPECT(!control_serve(node.control, &node.source));
	return NULL;
}

/* What is no request is answered with an error, whatever its bytes are. */
static const char *test_garbage(void)
{
	static const char *const LINES[] = {
		"\n",
		" \n",
		"status\n",
		"status  json\n",
		"status json \n",
		"STATUS JSON\n",
		"status xml\n",
		"wait\n",
		"wait app.db applied\n",
		"wait app.db applied 1 2\n",
		"wait app.db seen 1\n",
		"wait app.db applied -1\n",
		"wait app.db applied 1x\n",
		"wait app.db applied 99999999999999999999\n",
		"wait app.db applied \n",
		"ring\n",
		"ring a b\n",
		"ring %zz\n",
		"ring %4\n",
		"ring %00\n",
		"ring \x01\n",
		"\xff\xfe\x80\n",
		"GET / HTTP/1.1\r\n\r\n",
	};
	int fd;

	add_database("app.db", 12);
	for (size_t i = 0; i < sizeof(LINES) / sizeof(LINES[0]); i++)
		if (strncmp(ask(LINES[i]), "error that is no request", 24) != 0) {
			fprintf(stderr, "line %zu: %s", i, text);
			return "a line is not refused";
		}
	fd = client_open();
	EXPECT(write(fd, "status\0json\n", 12) == 12);
	EXPECT(strncmp(answer_of(fd, 4096), "error that is no request", 24) == 0);
	EXPECT(node.fills == 0);
	return NULL;
}

/* A line that fits is read, one that exceeds the limit is refused without its end. */
static const char *test_line_length(void)
{
	char line[CONTROL_LINE_MAX + 1];
	int fd;

	memset(line, 'x', sizeof(line));
	line[CONTROL_LINE_MAX - 1] = '\n';
	fd = client_open();
	EXPECT(write(fd, line, CONTROL_LINE_MAX) == CONTROL_LINE_MAX);
	EXPECT(strncmp(answer_of(fd, 4096), "error that is no request", 24) == 0);
	line[CONTROL_LINE_MAX - 1] = 'x';
	fd = client_open();
	EXPECT(write(fd, line, CONTROL_LINE_MAX) == CONTROL_LINE_MAX);
	EXPECT(strcmp(answer_of(fd, 4096), "error the request is too long\n") == 0);
	fd = client_open();
	EXPECT(write(fd, line, CONTROL_LINE_MAX + 1) == CONTROL_LINE_MAX + 1);
	EXPECT(strcmp(answer_of(fd, 4096), "error the request is too long\n") == 0);
	return NULL;
}

/* A client may write byte by byte, others are served between; its end does for a newline. */
static const char *test_slow_writer(void)
{
	const char *line = "status json";
	int fd = client_open();

	for (const char *s = line; *s; s++) {
		EXPECT(write(fd, s, 1) == 1);
		EXPECT(strncmp(ask("status text\n"), "ok\n", 3) == 0);
	}
	EXPECT(shutdown(fd, SHUT_WR) == 0);
	EXPECT(strncmp(answer_of(fd, 4096), "ok\n{", 4) == 0);
	return NULL;
}

/* An answer larger than the socket's buffer reaches a client that takes it in small pieces, while
 * others are served. */
static const char *test_slow_reader(void)
{
	int fd = client_open();
	size_t bytes;

	for (int i = 0; i < DATABASES_MAX; i++) {
		struct db_status *d = add_database("x.db", 1);

		for (int j = 0; j < RING_READERS_MAX; j++)
			add_peer(d, 1, 2, 3);
	}
	EXPECT(write(fd, "status json\n", 12) == 12);
	EXPECT(strncmp(ask("status text\n"), "ok\nprimary\n", 11) == 0);
	answer_of(fd, 1000);
	bytes = strlen(text);
	EXPECT(bytes > 300000 && strcmp(text + bytes - 4, "}]}\n") == 0);
	return NULL;
}

/* A client that vanishes, before its line, in it or while it waits, harms nobody, and the ring's
 * descriptor it asked for is closed. */
static const char *test_vanishing(void)
{
	int before, fd;

	add_database("app.db", 12);
	ask("status json\n");
	before = open_descriptors();
	for (int i = 0; i < 100; i++) {
		struct pollfd p = {.fd = node.wake_fd, .events = POLLIN};

		fd = client_open();
		if (i % 4 == 1)
			EXPECT(write(fd, "stat", 4) == 4);
		if (i % 4 == 2)
			EXPECT(write(fd, "status json\n", 12) == 12);
		if (i % 4 == 3) {
			EXPECT(write(fd, "ring app.db\n", 12) == 12);
			EXPECT(poll(&p, 1, LIMIT_MS) == 1);
		}
		close(fd);
		serve();
	}
	EXPECT(strncmp(ask("status json\n"), "ok\n{", 4) == 0);
	EXPECT(strncmp(ask("ring app.db\n"), "ok\nring app.db\n", 15) == 0);
	EXPECT(strncmp(ask("status json\n"), "ok\n{", 4) == 0);
	EXPECT(open_descriptors() == before);
	return NULL;
}

/* More clients than are served at a time: all get their answer, none another's. */
static const char *test_concurrent(void)
{
	enum { CLIENTS = 3 * CONTROL_CLIENTS_MAX / 2 };
	static const char *const LINE[] = {"status json\n", "wait app.db applied 3\n",
					   "ring app.db\n"};
	static const char *const ANSWER[] = {"ok\n{\"role\"", "ok\nnot - 3\n", "ok\nring app.db\n"};
	int fd[CLIENTS];

	add_database("app.db", 12);
	for (int i = 0; i < CLIENTS; i++) {
		fd[i] = client_open();
		EXPECT(fd[i] >= 0);
		EXPECT(write(fd[i], LINE[i % 3], strlen(LINE[i % 3])) > 0);
	}
	for (int i = 0; i < CLIENTS; i++) {
		answer_of(fd[i], 4096);
		EXPECT(strncmp(text, ANSWER[i % 3], strlen(ANSWER[i % 3])) == 0);
	}
	return NULL;
}

/* A client that says nothing is dropped without a word; those who come after it are served. */
static const char *test_silent(void)
{
	int silent = client_open(), half = client_open();

	EXPECT(write(half, "status", 6) == 6);
	EXPECT(strncmp(ask("status json\n"), "ok\n", 3) == 0);
	EXPECT(strcmp(answer_of(silent, 4096), "") == 0);
	EXPECT(strcmp(answer_of(half, 4096), "") == 0);
	EXPECT(strncmp(ask("status json\n"), "ok\n", 3) == 0);
	return NULL;
}

/* A loop that does not look gets its clients told so; when it looks again, nothing is left over. */
static const char *test_busy(void)
{
	struct pollfd p = {.events = POLLIN};
	int fd = client_open();

	EXPECT(write(fd, "status json\n", 12) == 12);
	p.fd = fd;
	EXPECT(poll(&p, 1, LIMIT_MS) == 1);
	EXPECT(strncmp(answer_of(fd, 4096), "busy the loop", 13) == 0);
	EXPECT(!serve() && node.fills == 0);
	EXPECT(strncmp(ask("status json\n"), "ok\n", 3) == 0 && node.fills == 1);
	return NULL;
}

/* The picture is always painted into zeroed memory. */
static const char *test_zeroed(void)
{
	for (int i = 0; i < 5; i++)
		add_peer(add_database("x.db", 1), 1, 2, 3);
	node.picture.db[3].counter[COUNTER_commits] = 7;
	EXPECT(strncmp(ask("status json\n"), "ok\n", 3) == 0);
	node.picture.databases = 1;
	memset(&node.picture.db[1], 0, 4 * sizeof(node.picture.db[0]));
	EXPECT(strncmp(ask("status json\n"), "ok\n", 3) == 0);
	EXPECT(strncmp(ask("ring \n"), "ok\n", 3) == 0);
	EXPECT(strncmp(ask("status json\n"), "ok\n", 3) == 0);
	EXPECT(node.fills == 4 && !node.dirty);
	return NULL;
}

static bool says(const char *line, const char *answer)
{
	ask(line);
	if (strcmp(text, answer) == 0)
		return true;
	fprintf(stderr, "%s  said %s  not  %s", line, text, answer);
	return false;
}

/* On a primary the slowest connected replica counts; none connected is not "reached". */
static const char *test_wait_primary(void)
{
	struct db_status *d;

	EXPECT(says("wait  applied 1\n", "error there is no database here yet\n"));
	d = add_database("app.db", 12);
	EXPECT(says("wait app.db applied 12\n", "ok\nnot - 12\n"));
	EXPECT(says("wait app.db applied 0\n", "ok\nnot - 0\n"));
	EXPECT(says("wait  applied -\n", "ok\nnot - 12\n"));
	add_peer(d, 12, 11, 10);
	EXPECT(says("wait app.db received 12\n", "ok\nreached 12\n"));
	EXPECT(says("wait app.db received -\n", "ok\nreached 12\n"));
	EXPECT(says("wait app.db received 13\n", "ok\nnot 12 13\n"));
	EXPECT(says("wait app.db applied 11\n", "ok\nreached 11\n"));
	EXPECT(says("wait app.db applied -\n", "ok\nnot 11 12\n"));
	EXPECT(says("wait app.db durable 1\n", "ok\nreached 10\n"));
	add_peer(d, 9, 8, 7);
	EXPECT(says("wait app.db applied 9\n", "ok\nnot 8 9\n"));
	EXPECT(says("wait app.db durable 7\n", "ok\nreached 7\n"));
	add_peer(d, 12, STATUS_UNKNOWN, STATUS_UNKNOWN);
	EXPECT(says("wait app.db applied 1\n", "ok\nnot - 1\n"));
	d->txid = STATUS_UNKNOWN;
	EXPECT(says("wait app.db received -\n", "ok\nnot 9 -\n"));
	return NULL;
}

/* A replica speaks for itself; what is captured now it knows while it is streaming. */
static const char *test_wait_replica(void)
{
	struct db_status *d = add_database("app.db", 20);

	strcpy(node.picture.role, "replica");
	EXPECT(says("wait app.db applied 1\n", "ok\nnot - 1\n"));
	d->received = 19;
	d->applied = 18;
	d->durable = 0;
	add_peer(d, 1, 1, 1);
	strcpy(d->state, "connecting");
	EXPECT(says("wait app.db applied 18\n", "ok\nreached 18\n"));
	EXPECT(says("wait app.db applied -\n", "ok\nnot 18 -\n"));
	EXPECT(says("wait app.db durable 1\n", "ok\nnot 0 1\n"));
	strcpy(d->state, "streaming");
	EXPECT(says("wait app.db applied -\n", "ok\nnot 18 20\n"));
	d->received = 21;
	EXPECT(says("wait app.db applied -\n", "ok\nnot 18 21\n"));
	d->applied = 21;
	EXPECT(says("wait app.db applied -\n", "ok\nreached 21\n"));
	d->txid = STATUS_UNKNOWN;
	EXPECT(says("wait app.db applied -\n", "ok\nnot 21 -\n"));
	return NULL;
}

/* A name is one word, whatever bytes it has; an empty one is enough where there is one database. */
static const char *test_names(void)
{
	char name[DB_NAME_MAX], word[CONTROL_WORD_MAX], back[DB_NAME_MAX];

	for (int i = 1; i < DB_NAME_MAX; i++)
		name[i - 1] = (char)i;
	name[DB_NAME_MAX - 1] = 0;
	control_word(word, name);
	EXPECT(!strpbrk(word, " \n\t\x7f"));
	EXPECT(control_unword(back, word, strlen(word)) == 0 && strcmp(name, back) == 0);
	memset(name, ' ', DB_NAME_MAX - 1);
	control_word(word, name);
	EXPECT(strlen(word) == CONTROL_WORD_MAX - 3);
	EXPECT(control_unword(back, word, strlen(word)) == 0 && strcmp(name, back) == 0);
	memset(word, 'x', DB_NAME_MAX);
	EXPECT(control_unword(back, word, DB_NAME_MAX - 1) == 0);
	EXPECT(control_unword(back, word, DB_NAME_MAX) == -EINVAL);
	EXPECT(control_unword(back, "%", 1) == -EINVAL && control_unword(back, "%2", 2) == -EINVAL);
	EXPECT(control_unword(back, "%2g", 3) == -EINVAL);
	EXPECT(control_unword(back, "%20", 3) == 0 && strcmp(back, " ") == 0);

	add_peer(add_database("my app \xc3\xa4 100%.db", 5), 5, 5, 5);
	EXPECT(says("wait my%20app%20\xc3\xa4%20100%25.db applied 5\n", "ok\nreached 5\n"));
	EXPECT(says("wait  applied 5\n", "ok\nreached 5\n"));
	EXPECT(says("wait other.db applied 5\n", "error there is no database 'other.db' here; "
						 "there is my%20app%20\xc3\xa4%20100%25.db\n"));
	add_database("b.db", 1);
	EXPECT(says("ring \n", "error there are several databases here, name one: "
			       "my%20app%20\xc3\xa4%20100%25.db, b.db\n"));
	return NULL;
}

/* control_ask() in a thread of its own: it waits, and the test is the loop. */
struct asker {
	pthread_t thread;
	const char *line;
	_Atomic bool ended;
	int err, fd;
	FILE *answer;
};

static void *asker_run(void *arg)
{
	struct asker *a = arg;

	a->err = control_ask(node.dir, a->line, &a->answer, &a->fd);
	atomic_store(&a->ended, true);
	return NULL;
}

static struct asker ask_in_thread(const char *line)
{
	struct asker a = {.line = line, .fd = -1};

	pthread_create(&a.thread, NULL, asker_run, &a);
	while (!atomic_load(&a.ended)) {
		struct pollfd p = {.fd = node.wake_fd, .events = POLLIN};

		if (poll(&p, 1, 10) > 0)
			serve();
	}
	pthread_join(a.thread, NULL);
	return a;
}

/* The ring's descriptor comes with the answer, for the database that is meant. */
static const char *test_ring(void)
{
	int before = open_descriptors();
	char bytes[64] = "";
	struct asker a;

	add_database("app.db", 12);
	a = ask_in_thread("ring ");
	EXPECT(a.err == 0 && a.fd >= 0);
	EXPECT(strcmp(node.ring_name, "app.db") == 0);
	EXPECT(pread(a.fd, bytes, sizeof(bytes), 0) == 8 && strcmp(bytes, "the ring") == 0);
	EXPECT(fgets(bytes, sizeof(bytes), a.answer) && strcmp(bytes, "ok\n") == 0);
	EXPECT(fgets(bytes, sizeof(bytes), a.answer) && strcmp(bytes, "ring app.db\n") == 0);
	fclose(a.answer);
	close(a.fd);
	node.ring_error = -ENODEV;
	a = ask_in_thread("ring app.db");
	EXPECT(a.err == 0 && a.fd == -1);
	EXPECT(fgets(bytes, sizeof(bytes), a.answer) &&
	       strncmp(bytes, "error the ring of", 17) == 0);
	fclose(a.answer);
	a = ask_in_thread("ring other.db");
	EXPECT(a.err == 0 && a.fd == -1);
	EXPECT(fgets(bytes, sizeof(bytes), a.answer) &&
	       strncmp(bytes, "error there is no", 17) == 0);
	fclose(a.answer);
	EXPECT(open_descriptors() == before);
	return NULL;
}

/* Whoever asks where nobody runs is told so; a line that is none is not sent. */
static const char *test_nobody(void)
{
	char line[CONTROL_LINE_MAX + 1], dir[64] = "/tmp/walwire-test-XXXXXX";
	FILE *answer;
	int fd;

	EXPECT(mkdtemp(dir));
	EXPECT(control_ask(dir, "status json", &answer, &fd) == -ENOENT);
	rmdir(dir);
	EXPECT(control_ask(dir, "status json", &answer, &fd) == -ENOENT);
	EXPECT(control_ask(node.dir, "two\nlines", &answer, &fd) == -EMSGSIZE);
	memset(line, 'x', sizeof(line));
	line[CONTROL_LINE_MAX] = 0;
	EXPECT(control_ask(node.dir, line, &answer, &fd) == -EMSGSIZE);
	return NULL;
}

/* A socket that a dead process left is replaced; a live one, whether or not its owner knows of our
 * lock, is not, and neither is what is no socket. */
static const char *test_stale(void)
{
	struct control *second = NULL;
	struct sockaddr_un a;
	FILE *answer;
	int fd;

	EXPECT(control_open(&second, node.dir, node.wake_fd) == -EADDRINUSE && !second);
	EXPECT(strncmp(ask("status json\n"), "ok\n", 3) == 0);
	control_close(node.control);
	node.control = NULL;

	control_address(&a, node.dir, -1);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	EXPECT(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 1) == 0);
	EXPECT(control_open(&second, node.dir, node.wake_fd) == -EADDRINUSE);
	close(fd);
	EXPECT(control_ask(node.dir, "status json", &answer, NULL) == -ECONNREFUSED);
	EXPECT(control_open(&node.control, node.dir, node.wake_fd) == 0);
	EXPECT(strncmp(ask("status json\n"), "ok\n", 3) == 0);
	control_close(node.control);
	node.control = NULL;

	EXPECT(access(a.sun_path, F_OK) < 0 && errno == ENOENT);
	fd = open(a.sun_path, O_CREAT | O_WRONLY, 0600);
	EXPECT(control_open(&second, node.dir, node.wake_fd) == -ENOTSOCK);
	close(fd);
	EXPECT(unlink(a.sun_path) == 0);
	return NULL;
}

/* A state directory whose path is longer than a socket's may be works all the same; one without a
 * parent is refused. */
static const char *test_long_path(void)
{
	char part[101] = "/", dir[4096];
	struct asker a;

	control_close(node.control);
	node.control = NULL;
	strcpy(dir, node.dir);
	memset(part + 1, 'd', 99);
	for (int i = 0; i < 2; i++) {
		strcat(node.dir, part);
		EXPECT(mkdir(node.dir, 0700) == 0);
	}
	EXPECT(control_open(&node.control, node.dir, node.wake_fd) == 0);
	a = ask_in_thread("status json");
	EXPECT(a.err == 0);
	fclose(a.answer);
	control_close(node.control);
	node.control = NULL;
	while (strcmp(node.dir, dir) != 0) {
		rmdir(node.dir);
		*strrchr(node.dir, '/') = 0;
	}
	strcat(dir, "/no/parent");
	EXPECT(control_open(&node.control, dir, node.wake_fd) == -ENOENT && !node.control);
	return NULL;
}

/* Closing drops whoever is there, in whatever state. */
static const char *test_close(void)
{
	struct pollfd p = {.fd = node.wake_fd, .events = POLLIN};
	int fd[3] = {client_open(), client_open(), client_open()};
	char byte;

	add_database("app.db", 1);
	EXPECT(write(fd[1], "ring", 4) == 4 && write(fd[2], "ring app.db\n", 12) == 12);
	EXPECT(poll(&p, 1, LIMIT_MS) == 1);
	control_serve(node.control, &node.source);
	control_close(node.control);
	node.control = NULL;
	for (int i = 0; i < 3; i++) {
		while (read(fd[i], &byte, 1) == 1)
			;
		close(fd[i]);
	}
	EXPECT(client_open() < 0);
	return NULL;
}

static int failed;

static void run(const char *name, const char *(*test)(void))
{
	int before = open_descriptors(), err = node_open();
	const char *why = NULL;

	if (!err) {
		why = test();
		node_close();
	} else {
		why = strerror(-err);
	}
	if (!why && open_descriptors() != before)
		why = "a descriptor is left open";
	if (why)
		printf("FAIL %s: %s\n", name, why);
	else
		printf("ok %s\n", name);
	fflush(stdout);
	failed |= why != NULL;
}

int main(void)
{
	run("control_status", test_status);
	run("control_garbage", test_garbage);
	run("control_line_length", test_line_length);
	run("control_slow_writer", test_slow_writer);
	run("control_slow_reader", test_slow_reader);
	run("control_vanishing", test_vanishing);
	run("control_concurrent", test_concurrent);
	run("control_silent", test_silent);
	run("control_busy", test_busy);
	run("control_zeroed", test_zeroed);
	run("control_wait_primary", test_wait_primary);
	run("control_wait_replica", test_wait_replica);
	run("control_names", test_names);
	run("control_ring", test_ring);
	run("control_nobody", test_nobody);
	run("control_stale", test_stale);
	run("control_long_path", test_long_path);
	run("control_close", test_close);
	return failed;
}
