/* test_log - one line, one write, nothing in it that moves a terminal. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"

#define STRING(x)  STRING_(x)
#define STRING_(x) #x
#define EXPECT(c)                                                \
	do {                                                     \
		if (!(c))                                        \
			return "line " STRING(__LINE__) ": " #c; \
	} while (0)

static int from_stderr; /* a pipe */
static char line[4 * LOG_LINE_MAX];

/* What has been logged since the last time, "" for nothing. */
static const char *logged(void)
{
	ssize_t n;

	fprintf(stderr, "\n"); /* so that the read does not wait */
	n = read(from_stderr, line, sizeof(line) - 1);
	line[n > 0 ? n - 1 : 0] = 0;
	return line;
}

/* A line has its prefix and its newline, and errno is left alone. */
static const char *test_line(void)
{
	errno = ENOSPC;
	log_line("'%s' has %d pages", "app.db", 3);
	EXPECT(errno == ENOSPC);
	EXPECT(strcmp(logged(), "walwire: 'app.db' has 3 pages\n") == 0);
	return NULL;
}

/* Control characters are shown, not obeyed; UTF-8 and bytes that are none pass. */
static const char *test_escapes(void)
{
	log_line("%s", "a\nwalwire: b\x1b[2J\x7f\t\xc2\x9bm \xc3\xa4\xff");
	EXPECT(strcmp(logged(), "walwire: a\\x0awalwire: b\\x1b[2J\\x7f\\x09\\xc2\\x9bm "
				"\xc3\xa4\xff\n") == 0);
	return NULL;
}

/* A line that is too long ends in "..." and a newline, within the limit, also when what does not
 * fit is an escape. */
static const char *test_length(void)
{
	char text[2 * LOG_LINE_MAX];

	for (int fill = 0; fill < 2; fill++) {
		memset(text, fill ? '\x1b' : 'x', sizeof(text));
		text[sizeof(text) - 1] = 0;
		for (int shift = 0; shift < 8; shift++) {
			log_line("%.*s%s", shift, "12345678", text);
			logged();
			EXPECT(strlen(line) <= LOG_LINE_MAX && strlen(line) > LOG_LINE_MAX - 8);
			EXPECT(strcmp(line + strlen(line) - 4, "...\n") == 0);
		}
	}
	return NULL;
}

/* A place with much to say gets one line per interval and counts what it left out. */
static const char *test_limit(void)
{
	struct log_limit limit = {0};
	uint64_t now = 5 * LOG_INTERVAL_NS;
	char text[2 * LOG_LINE_MAX];

	log_limited(&limit, now, "first");
	EXPECT(strcmp(logged(), "walwire: first\n") == 0);
	for (int i = 0; i < 3; i++)
		log_limited(&limit, now + LOG_INTERVAL_NS - 1, "never seen");
	EXPECT(strcmp(logged(), "") == 0);
	log_limited(&limit, now + LOG_INTERVAL_NS, "second");
	EXPECT(strcmp(logged(), "walwire: second (and 3 more like it)\n") == 0);
	log_limited(&limit, now + 2 * LOG_INTERVAL_NS, "third");
	EXPECT(strcmp(logged(), "walwire: third\n") == 0);
	log_limited(&limit, now + 2 * LOG_INTERVAL_NS, "never seen");
	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = 0;
	log_limited(&limit, now + 3 * LOG_INTERVAL_NS, "%s", text);
	logged();
	EXPECT(strlen(line) <= LOG_LINE_MAX && strstr(line, "x... (and 1 more like it)\n"));
	return NULL;
}

static int failed;

static void run(const char *name, const char *(*test)(void))
{
	const char *why = test();

	if (why)
		printf("FAIL %s: %s\n", name, why);
	else
		printf("ok %s\n", name);
	failed |= why != NULL;
}

int main(void)
{
	int ends[2];

	if (pipe(ends) < 0 || dup2(ends[1], STDERR_FILENO) < 0) {
		printf("FAIL log: %s\n", strerror(errno));
		return 1;
	}
	from_stderr = ends[0];
	run("log_line", test_line);
	run("log_escapes", test_escapes);
	run("log_length", test_length);
	run("log_limit", test_limit);
	return failed;
}
