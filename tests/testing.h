/* testing.h - what tests share: expectations, a directory of their own, SQLite in another process.
 *
 * A test is a function that returns NULL or what was not as it should be. run() gives it an empty
 * directory and looks for descriptors it left open. Random tests draw from rnd(); the seed is
 * printed when one fails, and taken back from WALWIRE_SEED. */
#ifndef WALWIRE_TESTING_H
#define WALWIRE_TESTING_H

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMIT_MS 30000 /* longer than anything may take; never measured against */

#define STRING(x)  STRING_(x)
#define STRING_(x) #x
#define EXPECT(c)                                                \
	do {                                                     \
		if (!(c))                                        \
			return "line " STRING(__LINE__) ": " #c; \
	} while (0)
/* For helpers that are tests of their own. */
#define CALL(f)                              \
	do {                                 \
		const char *why_ = (f);      \
		if (why_)                    \
			return why_;         \
	} while (0)
#define MAYBE __attribute__((unused)) static

extern char **environ;

/* ---- randomness ---- */

static uint64_t rnd_seed, rnd_state;

MAYBE uint64_t rnd(void) /* splitmix64 */
{
	uint64_t z = rnd_state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

MAYBE uint32_t below(uint32_t n)
{
	return (uint32_t)(rnd() % n);
}

MAYBE void rnd_fill(void *to, size_t bytes)
{
	uint8_t *p = to;

	for (; bytes >= 8; bytes -= 8, p += 8) {
		uint64_t v = rnd();

		memcpy(p, &v, 8);
	}
	for (uint64_t v = rnd(); bytes; bytes--, v >>= 8)
		*p++ = (uint8_t)v;
}

/* ---- a directory for each test ---- */

static char scratch[64];

/* In memory where there is room: then a test costs no disk and waits for none. */
MAYBE const char *scratch_root(void)
{
	struct statvfs v;

	return statvfs("/dev/shm", &v) == 0 && v.f_bavail * v.f_bsize > 1ull << 30 &&
			       access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
}

/* A path in it; the last eight stay valid. */
MAYBE const char *in_scratch(const char *name)
{
	static char path[8][4096];
	static unsigned int next;
	char *p = path[next++ % 8];

	snprintf(p, sizeof(path[0]), "%s/%s", scratch, name);
	return p;
}

MAYBE int shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
MAYBE int shell(const char *fmt, ...)
{
	char command[8192];
	va_list args;
	int status;

	va_start(args, fmt);
	vsnprintf(command, sizeof(command), fmt, args);
	va_end(args);
	status = system(command);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* A file's bytes, read by another process: closing a database file of ours would drop its locks.
 * NULL when there is none. The caller frees. */
MAYBE uint8_t *slurp(const char *path, size_t *ret_bytes)
{
	size_t have = 0, room = 1 << 16;
	uint8_t *bytes = malloc(room);
	char command[4200];
	FILE *f;

	snprintf(command, sizeof(command), "exec cat '%s' 2>/dev/null", path);
	f = popen(command, "re");
	for (size_t n; (n = fread(bytes + have, 1, room - have, f)) > 0;) {
		have += n;
		if (have == room)
			bytes = realloc(bytes, room *= 2);
	}
	if (pclose(f) != 0) {
		free(bytes);
		return NULL;
	}
	*ret_bytes = have;
	return bytes;
}

MAYBE bool same_file(const char *a, const char *b)
{
	return shell("cmp '%s' '%s' >&2", a, b) == 0;
}

MAYBE int open_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static int failed;

#define EXIT_SAID 33 /* failed, and a line says so */
#define LIMIT_S	  120 /* a test that takes longer hangs */

/* Each test has a process of its own: what a failed one leaves behind (threads, locks, children)
 * harms no other, a crash is a failure like any, and SQLite, which does not survive a fork, is never
 * used in the parent. */
MAYBE void run(const char *name, const char *(*test)(void))
{
	const char *seed = getenv("WALWIRE_SEED"), *why;
	int before = open_descriptors(), status = 0;
	pid_t pid;

	snprintf(scratch, sizeof(scratch), "%s/walwire-test-XXXXXX", scratch_root());
	if (!mkdtemp(scratch))
		abort();
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		alarm(LIMIT_S);
		rnd_seed = rnd_state = seed ? strtoull(seed, NULL, 10) : (uint64_t)getpid();
		why = test();
		if (!why && open_descriptors() != before)
			why = "a descriptor is left open";
		if (why)
			printf("FAIL %s: %s (WALWIRE_SEED=%llu)\n", name, why,
			       (unsigned long long)rnd_seed);
		else
			printf("ok %s\n", name);
		fflush(stdout);
		if (why)
			_exit(EXIT_SAID);
		exit(0); /* leaks are looked for here */
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		printf("FAIL %s: %s (WALWIRE_SEED=%d)\n", name,
		       WTERMSIG(status) == SIGALRM ? "it hangs" : "it crashed", (int)pid);
	else if (WEXITSTATUS(status) && WEXITSTATUS(status) != EXIT_SAID)
		printf("FAIL %s: exit code %d, see stderr (WALWIRE_SEED=%d)\n", name,
		       WEXITSTATUS(status), (int)pid);
	failed |= status != 0;
	fflush(stdout);
	shell("rm -rf '%s'", scratch);
}

/* ---- SQLite in another process: the sqlite3 program, a line at a time ---- */

struct cli {
	pid_t pid;
	FILE *in, *out;
	char *text;
	size_t room;
};

/* What `sql` (with its semicolons) and dot commands said, errors included, lines between newlines. */
MAYBE const char *cli_answer(struct cli *c)
{
	size_t have = 0, n;

	for (;;) {
		if (c->room < have + 4096)
			c->text = realloc(c->text, c->room = 2 * (have + 4096));
		if (!fgets(c->text + have, (int)(c->room - have), c->out)) {
			strcpy(c->text, "(the sqlite3 program ended)");
			return c->text;
		}
		n = strlen(c->text + have);
		if (!strcmp(c->text + have, "@@done@@\n"))
			break;
		have += n;
	}
	c->text[have ? have - 1 : 0] = 0;
	return c->text;
}

/* Only say it; cli_answer() fetches what comes of it. */
MAYBE void cli_tell(struct cli *c, const char *sql)
{
	fprintf(c->in, "%s\n.print @@done@@\n", sql);
	fflush(c->in);
}

MAYBE const char *cli_ask(struct cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
MAYBE const char *cli_ask(struct cli *c, const char *fmt, ...)
{
	char *sql;
	va_list args;

	va_start(args, fmt);
	if (vasprintf(&sql, fmt, args) < 0)
		abort();
	va_end(args);
	cli_tell(c, sql);
	free(sql);
	return cli_answer(c);
}

MAYBE long cli_number(struct cli *c, const char *sql)
{
	const char *text = cli_ask(c, "%s", sql);
	char *end;
	long n = strtol(text, &end, 10);

	return end != text && *end == 0 ? n : -1;
}

/* A connection of another process to `path`; not synchronous, no checkpoints of its own. */
MAYBE void cli_open(struct cli *c, const char *path)
{
	char *argv[] = {"sqlite3", "-batch", (char *)(uintptr_t)path, NULL};
	posix_spawn_file_actions_t fa;
	int in[2], out[2];

	memset(c, 0, sizeof(*c));
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		abort();
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, in[0], 0);
	posix_spawn_file_actions_adddup2(&fa, out[1], 1);
	posix_spawn_file_actions_adddup2(&fa, out[1], 2);
	if (posix_spawnp(&c->pid, "sqlite3", &fa, NULL, argv, environ))
		abort();
	posix_spawn_file_actions_destroy(&fa);
	close(in[0]);
	close(out[1]);
	c->in = fdopen(in[1], "w");
	c->out = fdopen(out[0], "r");
	cli_ask(c, "PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0;");
}

MAYBE void cli_end(struct cli *c, bool killed)
{
	int status;

	if (!c->in)
		return;
	if (killed)
		kill(c->pid, SIGKILL);
	fclose(c->in);
	waitpid(c->pid, &status, 0);
	fclose(c->out);
	free(c->text);
	memset(c, 0, sizeof(*c));
}

MAYBE void cli_close(struct cli *c)
{
	cli_end(c, false);
}

/* ---- a -wal file, as it stands there ---- */

struct wal_file {
	uint8_t *bytes;
	size_t total;
	uint32_t page_bytes, frames; /* frames with the header's salts, one after the other */
};

MAYBE uint32_t be32_at(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return be32toh(v);
}

/* Frame f, 1-based: 24 bytes, then its page. */
MAYBE const uint8_t *wal_file_frame(const struct wal_file *w, uint32_t f)
{
	return w->bytes + 32 + (size_t)(f - 1) * (24 + w->page_bytes);
}

MAYBE uint32_t wal_file_pgno(const struct wal_file *w, uint32_t f)
{
	return be32_at(wal_file_frame(w, f));
}

MAYBE uint32_t wal_file_size(const struct wal_file *w, uint32_t f)
{
	return be32_at(wal_file_frame(w, f) + 4);
}

MAYBE bool wal_file_load(struct wal_file *w, const char *db_path)
{
	char path[4200];

	snprintf(path, sizeof(path), "%s-wal", db_path);
	memset(w, 0, sizeof(*w));
	w->bytes = slurp(path, &w->total);
	if (!w->bytes)
		return false;
	if (w->total < 32)
		return true;
	w->page_bytes = be32_at(w->bytes + 8);
	while (32 + (size_t)(w->frames + 1) * (24 + w->page_bytes) <= w->total &&
	       !memcmp(wal_file_frame(w, w->frames + 1) + 8, w->bytes + 16, 8))
		w->frames++;
	return true;
}

MAYBE void wal_file_free(struct wal_file *w)
{
	free(w->bytes);
	memset(w, 0, sizeof(*w));
}

/* ---- a database as an array of pages, to compare with ---- */

struct image {
	uint8_t *bytes;
	uint32_t page_bytes, pages, room;
};

MAYBE void image_put(struct image *m, uint32_t pgno, const uint8_t *page)
{
	if (pgno > m->room) {
		m->bytes = realloc(m->bytes, (size_t)2 * pgno * m->page_bytes);
		memset(m->bytes + (size_t)m->room * m->page_bytes, 0,
		       (size_t)(2 * pgno - m->room) * m->page_bytes);
		m->room = 2 * pgno;
	}
	memcpy(m->bytes + (size_t)(pgno - 1) * m->page_bytes, page, m->page_bytes);
	if (pgno > m->pages)
		m->pages = pgno;
}

MAYBE void image_cut(struct image *m, uint32_t pages)
{
	if (pages < m->pages)
		memset(m->bytes + (size_t)pages * m->page_bytes, 0,
		       (size_t)(m->pages - pages) * m->page_bytes);
	m->pages = pages;
}

MAYBE bool image_load(struct image *m, const char *path, uint32_t page_bytes)
{
	size_t n = 0;

	memset(m, 0, sizeof(*m));
	m->bytes = slurp(path, &n);
	m->page_bytes = page_bytes;
	if (!m->bytes || n % page_bytes)
		return false;
	m->bytes = realloc(m->bytes, n ? n : 1);
	m->pages = m->room = (uint32_t)(n / page_bytes);
	return true;
}

MAYBE bool image_is(const struct image *m, const struct image *o)
{
	return m->pages == o->pages && !memcmp(m->bytes, o->bytes, (size_t)m->pages * m->page_bytes);
}

MAYBE bool image_is_file(const struct image *m, const char *path)
{
	struct image file;
	bool same = image_load(&file, path, m->page_bytes) && image_is(m, &file);

	if (!same) {
		fprintf(stderr, "'%s' has %u pages, %u were expected\n", path, file.pages,
			m->pages);
		for (uint32_t i = 0; file.bytes && i < m->pages && i < file.pages; i++) {
			if (memcmp(file.bytes + (size_t)i * m->page_bytes,
				   m->bytes + (size_t)i * m->page_bytes, m->page_bytes)) {
				fprintf(stderr, "page %u differs\n", i + 1);
				break;
			}
		}
	}
	free(file.bytes);
	return same;
}

MAYBE void image_free(struct image *m)
{
	free(m->bytes);
	memset(m, 0, sizeof(*m));
}

#endif
