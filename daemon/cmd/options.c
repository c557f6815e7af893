#include <math.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/cmd/cmd.h"

#define HELP_COLUMN 26

/* Usage errors name the wrong word and where to read on, nothing else. */
__attribute__((format(printf, 2, 3))) static int wrong(const struct usage *u, const char *fmt, ...)
{
	char what[LOG_LINE_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(what, sizeof(what), fmt, args);
	va_end(args);
	log_line("%s: %s; see: walwire %s --help", u->command, what, u->command);
	return EXIT_USAGE;
}

static bool read_unsigned(const char *text, const char **ret_end, uint64_t *ret_v)
{
	uint64_t v = 0;
	const char *s = text;

	for (; *s >= '0' && *s <= '9'; s++)
		if (__builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
			return false;
	if (s == text)
		return false;
	*ret_end = s;
	*ret_v = v;
	return true;
}

static bool set_unsigned(uint64_t *to, const char *text)
{
	const char *end;
	uint64_t v;

	if (!read_unsigned(text, &end, &v) || *end)
		return false;
	*to = v;
	return true;
}

static bool set_size(uint64_t *to, const char *text)
{
	static const char SUFFIX[] = "kMG";
	const char *end, *suffix;
	uint64_t v;

	if (!read_unsigned(text, &end, &v))
		return false;
	if (*end) {
		suffix = strchr(SUFFIX, *end == 'K' ? 'k' : *end);
		if (!suffix || end[1] ||
		    __builtin_mul_overflow(v, 1ull << (10 * (suffix - SUFFIX + 1)), &v))
			return false;
	}
	*to = v;
	return true;
}

static bool set_seconds(double *to, const char *text)
{
	char *end;
	double v;

	if (strspn(text, "0123456789.e+-") != strlen(text) || *text == '-')
		return false;
	v = strtod(text, &end);
	if (end == text || *end || !isfinite(v))
		return false;
	*to = v;
	return true;
}

/* Put `text` where the option wants it; NULL, or what it should have been. */
static const char *set_option(const struct option_spec *o, const char *text)
{
	switch (o->kind) {
	case OPTION_FLAG:
		*(bool *)o->to = true;
		return NULL;
	case OPTION_STRING:
		*(const char **)o->to = text;
		return *text ? NULL : "a value that is not empty";
	case OPTION_SIZE:
		return set_size(o->to, text) ? NULL : "a size such as 64M";
	case OPTION_UNSIGNED:
		return set_unsigned(o->to, text) ? NULL : "a whole number";
	case OPTION_SECONDS:
		return set_seconds(o->to, text) ? NULL : "seconds such as 0.5";
	}
	return "an option of a known kind";
}

static const struct option_spec *find_option(const struct usage *u, const char *name, size_t bytes)
{
	for (const struct option_spec *o = u->options; o->name; o++)
		if (strlen(o->name) == bytes && memcmp(o->name, name, bytes) == 0)
			return o;
	return NULL;
}

/* The option at argv[*i], which may take the word after it. 0, or the exit code. */
static int take_option(const struct usage *u, int argc, char **argv, int *i)
{
	const char *name = argv[*i] + 2;
	const char *value = strchr(name, '=');
	size_t bytes = value ? (size_t)(value - name) : strlen(name);
	const struct option_spec *o = find_option(u, name, bytes);
	const char *should_be;

	/* An abbreviation is unknown too: it would become ambiguous with the next option. */
	if (!o)
		return wrong(u, "unknown option '--%.*s'", (int)bytes, name);
	if (o->kind == OPTION_FLAG && value)
		return wrong(u, "option '--%s' takes no value", o->name);
	if (value) {
		value++;
	} else if (o->kind != OPTION_FLAG) {
		if (*i + 1 == argc || strncmp(argv[*i + 1], "--", 2) == 0)
			return wrong(u, "option '--%s' needs %s", o->name, o->metavar);
		value = argv[++*i];
	}
	should_be = set_option(o, value);
	if (should_be)
		return wrong(u, "option '--%s' needs %s, not '%s'", o->name, should_be, value);
	return 0;
}

static void print_option(const char *name, const char *metavar, const char *help)
{
	int used = printf("  --%s%s%s", name, metavar ? " " : "", metavar ? metavar : "");

	if (used > HELP_COLUMN - 2) {
		putchar('\n');
		used = 0;
	}
	for (const char *line = help; line; used = 0) {
		int bytes = (int)strcspn(line, "\n");

		printf("%*s%.*s\n", HELP_COLUMN - used, "", bytes, line);
		line = line[bytes] ? line + bytes + 1 : NULL;
	}
}

static void print_help(const struct usage *u)
{
	printf("usage: walwire %s%s%s [OPTION...]\n\n%s\n\n", u->command, *u->words ? " " : "",
	       u->words, u->about);
	for (const struct option_spec *o = u->options; o->name; o++)
		print_option(o->name, o->kind == OPTION_FLAG ? NULL : o->metavar, o->help);
	print_option("help", NULL, "print this");
}

/* The name of word `i` in the usage, and how many there may be: INT32_MAX when it ends in "...". */
static int words_named(const struct usage *u, int i, const char **ret_name, int *ret_bytes)
{
	const char *at = u->words;
	int named = 0;

	*ret_name = "";
	*ret_bytes = 0;
	while (*at) {
		int bytes = (int)strcspn(at, " ");
		bool many = bytes > 3 && memcmp(at + bytes - 3, "...", 3) == 0;

		if (named == i) {
			*ret_name = at;
			*ret_bytes = many ? bytes - 3 : bytes;
		}
		named++;
		if (many)
			return INT32_MAX;
		at += bytes;
		at += *at == ' ';
	}
	return named;
}

bool options_parse(const struct usage *u, int argc, char **argv, const char **words, int words_max,
		   int *ret_words, int *ret_exit)
{
	bool options_end = false;
	int count = 0, name_bytes;
	const char *name;
	int most = words_named(u, 0, &name, &name_bytes);

	for (int i = 1; i < argc; i++) {
		const char *word = argv[i];

		if (!options_end && strcmp(word, "--") == 0) {
			options_end = true;
		} else if (!options_end && (!strcmp(word, "--help") || !strcmp(word, "-h"))) {
			print_help(u);
			*ret_exit = EXIT_OK;
			return false;
		} else if (!options_end && strncmp(word, "--", 2) == 0) {
			*ret_exit = take_option(u, argc, argv, &i);
			if (*ret_exit)
				return false;
		} else if (!options_end && word[0] == '-' && word[1]) {
			*ret_exit = wrong(u, "unknown option '%s'", word);
			return false;
		} else if (count >= most || count >= words_max) {
			*ret_exit = wrong(u, "one word too many: '%s'", word);
			return false;
		} else {
			words[count++] = word;
		}
	}
	words_named(u, count, &name, &name_bytes);
	if (name_bytes) {
		*ret_exit = wrong(u, "%.*s is missing", name_bytes, name);
		return false;
	}
	*ret_words = count;
	return true;
}

const char *default_state_dir(void)
{
	static char dir[4096];
	const char *said = getenv("WALWIRE_STATE_DIR");
	const char *state = getenv("XDG_STATE_HOME");
	const char *home = getenv("HOME");
	const struct passwd *user;

	if (said && *said)
		return said;
	if (geteuid() == 0)
		return "/var/lib/walwire";
	/* The XDG directories are absolute, or not meant. */
	if (state && *state == '/') {
		snprintf(dir, sizeof(dir), "%s/walwire", state);
		return dir;
	}
	if (!home || *home != '/') {
		user = getpwuid(geteuid());
		home = user ? user->pw_dir : "";
	}
	snprintf(dir, sizeof(dir), "%s/.local/state/walwire", home);
	return dir;
}
