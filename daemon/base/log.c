#include "daemon/base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PREFIX "walwire: "
#define CUT    "..."

/* C0, DEL, and the C1 range as UTF-8 writes it (0xc2 0x80..0x9f): how many bytes to escape. */
static int control_bytes(const unsigned char *s)
{
	if (*s < 0x20 || *s == 0x7f)
		return 1;
	return s[0] == 0xc2 && s[1] >= 0x80 && s[1] <= 0x9f ? 2 : 0;
}

/* Append `text` to the `used` bytes of `line`, leaving the last `spare` bytes alone. */
static size_t append(char *line, size_t used, const char *text, size_t spare)
{
	size_t end = LOG_LINE_MAX - spare - strlen(CUT);

	for (const unsigned char *s = (const unsigned char *)text; *s; s++) {
		int escape = control_bytes(s);
		char bytes[9] = {(char)*s};
		size_t n = 1;

		if (escape == 1)
			n = (size_t)sprintf(bytes, "\\x%02x", *s);
		else if (escape == 2)
			n = (size_t)sprintf(bytes, "\\x%02x\\x%02x", s[0], s[1]);
		if (used + n > end) {
			memcpy(line + used, CUT, strlen(CUT));
			return used + strlen(CUT);
		}
		memcpy(line + used, bytes, n);
		used += n;
		if (escape == 2)
			s++;
	}
	return used;
}

static void put(int fd, const char *suffix, const char *fmt, va_list args)
{
	char text[LOG_LINE_MAX], line[LOG_LINE_MAX];
	size_t spare = strlen(suffix) + 1;
	size_t used = strlen(PREFIX);
	int saved = errno;

	memcpy(line, PREFIX, used);
	if (vsnprintf(text, sizeof(text), fmt, args) < 0)
		strcpy(text, "a line that could not be formatted");
	used = append(line, used, text, spare);
	memcpy(line + used, suffix, strlen(suffix));
	used += strlen(suffix);
	line[used++] = '\n';
	/* When it cannot be written there is nobody to tell. */
	ssize_t ignored = write(fd, line, used);

	(void)ignored;
	errno = saved;
}

void log_line(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	put(STDERR_FILENO, "", fmt, args);
	va_end(args);
}

void log_info(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	put(STDOUT_FILENO, "", fmt, args);
	va_end(args);
}

void log_limited(struct log_limit *l, uint64_t now_ns, const char *fmt, ...)
{
	char suffix[64] = "";
	va_list args;

	if (now_ns < l->next_ns) {
		l->left_out++;
		return;
	}
	if (l->left_out)
		snprintf(suffix, sizeof(suffix), " (and %" PRIu64 " more like it)", l->left_out);
	l->next_ns = now_ns + LOG_INTERVAL_NS;
	l->left_out = 0;
	va_start(args, fmt);
	put(STDERR_FILENO, suffix, fmt, args);
	va_end(args);
}
