/* log.h - one line on stderr, or on stdout when all is well.
 *
 * A line begins with "walwire: " and is handed over in a single write, so lines of several threads
 * and processes do not mix. It is LOG_LINE_MAX bytes at most, the newline included; what does not
 * fit ends in "...". Control characters are shown as \xNN: a name that came from a peer or a
 * directory cannot forge a line or move the cursor. Only commands log (a module returns its error).
 */
#ifndef WALWIRE_LOG_H
#define WALWIRE_LOG_H

#include <stdint.h>

#define LOG_LINE_MAX	1024
#define LOG_INTERVAL_NS 1000000000ull

/* Any thread. `errno` is left as it was. */
void log_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The same on stdout: what a node has reached, as opposed to what is wrong. */
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A place that may have much to say: one line per LOG_INTERVAL_NS, and what was left out since the
 * last one is counted in the next. Zeroed memory is a fresh one; one thread per struct. */
struct log_limit {
	uint64_t next_ns;
	uint64_t left_out;
};

/* `now_ns` is CLOCK_MONOTONIC, as the caller has it at hand. */
void log_limited(struct log_limit *l, uint64_t now_ns, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
