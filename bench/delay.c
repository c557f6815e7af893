/* delay.c - how long after COMMIT a row can be read on the replica; and what bare TCP needs.
 *
 *	delay PRIMARY_DB REPLICA_DB [option value]...
 *	delay --tcp BYTES [option value]...
 *	--rate N       commits, or exchanges, a second (1000)
 *	--seconds S    how long (30)
 *	--warmup S     before that, not measured (0.5)
 *	--sync WORD    OFF, NORMAL or FULL (NORMAL)
 *	--pin CPU      this process        --peer-pin CPU   the other end of the TCP exchange
 *
 * One thread commits on time and, all the rest of the time, asks a stock read-only connection on
 * the replica's file for the newest row. Commits are never held back by a late row, so a stall is
 * counted in every row that it delays. A delay contains the query that saw the row, whose own time
 * is printed beside it (poll_*): that is the resolution.
 *
 * The exchange: BYTES one way, one byte back, as soon as all have arrived; once with both ends
 * blocking in recv() (each way pays a wakeup) and once with both ends spinning on it. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/measure.h"

#define DRAIN_NS_MAX (10 * NS_PER_S) /* for the last rows to arrive */

struct options {
	const char *primary, *replica, *sync;
	double seconds, warmup, rate;
	int tcp_bytes, pin, peer_pin;
};

static void parse(struct options *o, int argc, char **argv)
{
	int i;

	*o = (struct options){.sync = "NORMAL",
			      .seconds = 30,
			      .warmup = 0.5,
			      .rate = 1000,
			      .pin = -1,
			      .peer_pin = -1};
	if (argc < 3)
		give_up("usage",
			"delay PRIMARY_DB REPLICA_DB | delay --tcp BYTES, [option value]...");
	if (!strcmp(argv[1], "--tcp"))
		o->tcp_bytes = atoi(argv[2]);
	else
		o->primary = argv[1], o->replica = argv[2];
	for (i = 3; i < argc; i += 2) {
		const char *value = argv[i + 1];

		if (!value)
			give_up(argv[i], "needs a value");
		if (!strcmp(argv[i], "--seconds"))
			o->seconds = atof(value);
		else if (!strcmp(argv[i], "--warmup"))
			o->warmup = atof(value);
		else if (!strcmp(argv[i], "--rate"))
			o->rate = atof(value);
		else if (!strcmp(argv[i], "--sync"))
			o->sync = value;
		else if (!strcmp(argv[i], "--pin"))
			o->pin = atoi(value);
		else if (!strcmp(argv[i], "--peer-pin"))
			o->peer_pin = atoi(value);
		else
			give_up(argv[i], "unknown option");
	}
	if (o->rate <= 0 || (!o->primary && o->tcp_bytes <= 0))
		give_up("usage", "--rate and BYTES must be above 0");
}

/* Rows are dense: row first + k is the k-th commit of this run. */
struct watch {
	int64_t first, last, seen; /* ids: before our first, newest committed, newest readable */
	uint64_t *committed_ns;	   /* [id - first - 1] */
	uint64_t measure_from;	   /* rows committed earlier are warm-up */
	struct histogram delay, commit, poll;
	uint64_t busy;
};

static struct watch watch;

static void commit_row(sqlite3 *db, sqlite3_stmt *insert)
{
	uint64_t t0 = now_ns(), t1;

	if (sqlite3_step(insert) != SQLITE_DONE)
		give_up("COMMIT", sqlite3_errmsg(db));
	t1 = now_ns();
	sqlite3_reset(insert);
	watch.last = sqlite3_last_insert_rowid(db);
	watch.committed_ns[watch.last - watch.first - 1] = t1;
	if (t1 >= watch.measure_from)
		histogram_add(&watch.commit, t1 - t0);
}

static void look(sqlite3_stmt *newest)
{
	uint64_t t0 = now_ns(), t1, at;
	int64_t id = ask_number(newest);

	t1 = now_ns();
	histogram_add(&watch.poll, t1 - t0);
	if (id < 0)
		watch.busy++;
	if (id > watch.last)
		give_up("replica", "shows a row that was never committed");
	if (id >= 0 && id < watch.seen)
		give_up("replica", "went back in time");
	for (; watch.seen < id; watch.seen++) {
		at = watch.committed_ns[watch.seen - watch.first];
		if (at >= watch.measure_from)
			histogram_add(&watch.delay, t1 - at);
	}
}

static void measure_rows(const struct options *o)
{
	sqlite3 *db = open_database(o->primary, SQLITE_OPEN_READWRITE);
	sqlite3 *replica = open_database(o->replica, SQLITE_OPEN_READONLY);
	sqlite3_stmt *insert = prepare(db, "INSERT INTO t(v) VALUES(zeroblob(64))");
	sqlite3_stmt *newest = prepare(replica, "SELECT ifnull(max(id), 0) FROM t");
	sqlite3_stmt *count = prepare(replica, "SELECT count(*) FROM t WHERE id > ?1");
	uint64_t period = (uint64_t)(NS_PER_S / o->rate), begin, end, next;
	char sql[64];

	snprintf(sql, sizeof(sql), "PRAGMA synchronous = %s", o->sync);
	run_sql(db, sql);
	watch.first = watch.last = watch.seen = ask_number(newest);
	watch.committed_ns =
		calloc((size_t)(o->rate * (o->seconds + o->warmup)) + 2, sizeof(uint64_t));
	if (!watch.committed_ns)
		give_up("memory", strerror(ENOMEM));
	begin = next = now_ns();
	watch.measure_from = begin + (uint64_t)(o->warmup * NS_PER_S);
	end = watch.measure_from + (uint64_t)(o->seconds * NS_PER_S);
	for (;;) {
		uint64_t now = now_ns();

		if (now >= end && (watch.seen == watch.last || now >= end + DRAIN_NS_MAX))
			break;
		if (now >= next && next < end) {
			commit_row(db, insert);
			next += period;
		}
		look(newest);
	}
	sqlite3_bind_int64(count, 1, watch.first);
	printf("{\"sqlite\": \"%s\", \"rows\": %lld, \"lost\": %lld, \"busy\": %llu, ",
	       sqlite3_libversion(), (long long)(watch.last - watch.first),
	       (long long)(watch.last - watch.first - ask_number(count)),
	       (unsigned long long)watch.busy);
	histogram_print(&watch.delay, "delay");
	printf(", ");
	histogram_print(&watch.commit, "commit");
	printf(", ");
	histogram_print(&watch.poll, "poll");
	printf("}\n");
	sqlite3_finalize(insert);
	sqlite3_finalize(newest);
	sqlite3_finalize(count);
	sqlite3_close(replica);
	sqlite3_close(db);
	free(watch.committed_ns);
}

/* All `bytes`, or false at the end of the stream. */
static bool receive_all(int fd, char *buffer, size_t bytes, int flags)
{
	while (bytes) {
		ssize_t n = recv(fd, buffer, bytes, flags);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			return false;
		bytes -= n;
	}
	return true;
}

static void answer(int fd, char *buffer, size_t bytes, int flags)
{
	while (receive_all(fd, buffer, bytes, flags))
		if (send(fd, "", 1, MSG_NOSIGNAL) != 1)
			return;
}

static void exchange(const struct options *o, int fd, char *buffer, int flags, struct histogram *h)
{
	uint64_t period = (uint64_t)(NS_PER_S / o->rate), next = now_ns(), t0;
	uint64_t from = next + (uint64_t)(o->warmup * NS_PER_S);
	uint64_t end = from + (uint64_t)(o->seconds * NS_PER_S);

	for (; next < end; next += period) {
		if (flags)
			while (now_ns() < next)
				;
		else
			sleep_until(next);
		t0 = now_ns();
		if (send(fd, buffer, o->tcp_bytes, MSG_NOSIGNAL) != o->tcp_bytes ||
		    !receive_all(fd, buffer, 1, flags))
			give_up("exchange", "the other end is gone");
		if (t0 >= from)
			histogram_add(h, now_ns() - t0);
	}
}

/* One connection between this process and a child, and the exchange over it. */
static void measure_tcp(const struct options *o, int flags, struct histogram *h)
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd, one = 1;
	socklen_t len = sizeof(addr);
	char *buffer = calloc(1, o->tcp_bytes);
	pid_t child;

	if (!buffer || listener < 0 || bind(listener, (struct sockaddr *)&addr, len) ||
	    listen(listener, 1) || getsockname(listener, (struct sockaddr *)&addr, &len))
		give_up("loopback", strerror(errno));
	child = fork();
	if (child < 0)
		give_up("fork", strerror(errno));
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pin_to(o->peer_pin);
		fd = accept(listener, NULL, NULL);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		answer(fd, buffer, o->tcp_bytes, flags);
		_exit(0);
	}
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, len))
		give_up("connect", strerror(errno));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	exchange(o, fd, buffer, flags, h);
	close(fd);
	close(listener);
	waitpid(child, NULL, 0);
	free(buffer);
}

int main(int argc, char **argv)
{
	static struct histogram blocking, spinning;
	struct options o;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	parse(&o, argc, argv);
	pin_to(o.pin);
	if (o.primary) {
		measure_rows(&o);
		return 0;
	}
	measure_tcp(&o, 0, &blocking);
	measure_tcp(&o, MSG_DONTWAIT, &spinning);
	printf("{\"bytes\": %d, ", o.tcp_bytes);
	histogram_print(&blocking, "blocking");
	printf(", ");
	histogram_print(&spinning, "spinning");
	printf("}\n");
	return 0;
}
