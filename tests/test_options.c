/* test_options - what a command line means, and what is said when it means nothing. */
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "daemon/cmd/cmd.h"

#define STRING(x)  STRING_(x)
#define STRING_(x) #x
#define EXPECT(c)                                                \
	do {                                                     \
		if (!(c))                                        \
			return "line " STRING(__LINE__) ": " #c; \
	} while (0)

static bool json;
static const char *dir;
static uint64_t ring_bytes, txid;
static double timeout_s;

static const struct option_spec OPTIONS[] = {
	{"json", OPTION_FLAG, &json, NULL, "print JSON"},
	{"state-dir", OPTION_STRING, &dir, "DIR", "a directory\nin two lines"},
	{"ring", OPTION_SIZE, &ring_bytes, "BYTES", "a size"},
	{"txid", OPTION_UNSIGNED, &txid, "N", "a number"},
	{"a-very-long-option-name", OPTION_SECONDS, &timeout_s, "SECONDS", "a time"},
	{NULL},
};

static struct usage usage = {
	.command = "test", .words = "", .about = "About it.", .options = OPTIONS};
static const char *words[3];
static int count, code;
static char out[4096], err[4096]; /* what was printed */

static void read_back(FILE *file, char *to, size_t bytes)
{
	size_t n;

	rewind(file);
	n = fread(to, 1, bytes - 1, file);
	to[n] = 0;
	fclose(file);
}

/* Parse the line, words separated by '|'. What it prints goes to `out` and `err`. */
static bool parse(const char *line)
{
	static char copy[1024];
	FILE *files[2] = {tmpfile(), tmpfile()};
	int saved[2] = {dup(1), dup(2)};
	char *argv[16] = {"test"}, *rest = copy;
	int argc = 1;
	bool go_on;

	strcpy(copy, line);
	while (*line && rest)
		argv[argc++] = strsep(&rest, "|");
	json = false;
	dir = "default";
	ring_bytes = txid = 99;
	timeout_s = 9;
	count = code = -1;
	fflush(stdout);
	dup2(fileno(files[0]), 1);
	dup2(fileno(files[1]), 2);
	go_on = options_parse(&usage, argc, argv, words, 3, &count, &code);
	fflush(stdout);
	for (int i = 0; i < 2; i++) {
		dup2(saved[i], 1 + i);
		close(saved[i]);
	}
	read_back(files[0], out, sizeof(out));
	read_back(files[1], err, sizeof(err));
	return go_on;
}

/* The line is refused with code 2 and exactly this on stderr. */
static bool refused(const char *line, const char *why)
{
	char expected[1024];

	snprintf(expected, sizeof(expected), "walwire: test: %s; see: walwire test --help\n", why);
	if (!parse(line) && code == EXIT_USAGE && strcmp(err, expected) == 0 && !*out)
		return true;
	fprintf(stderr, "%s: said %snot %s", line, err, expected);
	return false;
}

/* Nothing said, nothing changed. */
static const char *test_defaults(void)
{
	EXPECT(parse("") && count == 0 && !json && strcmp(dir, "default") == 0);
	EXPECT(ring_bytes == 99 && txid == 99 && timeout_s == 9 && !*out && !*err);
	return NULL;
}

/* A value follows its option or stands behind '='; the last one counts. */
static const char *test_values(void)
{
	EXPECT(parse("--json|--state-dir|/x y|--txid|7") && json && txid == 7);
	EXPECT(strcmp(dir, "/x y") == 0);
	EXPECT(parse("--state-dir=--odd=1|--txid=1|--txid=2") && txid == 2);
	EXPECT(strcmp(dir, "--odd=1") == 0);
	EXPECT(parse("--state-dir|-") && strcmp(dir, "-") == 0);
	return NULL;
}

/* Numbers: what fits is taken, what exceeds is not, and nothing is guessed. */
static const char *test_numbers(void)
{
	EXPECT(parse("--txid=0") && txid == 0);
	EXPECT(parse("--txid=18446744073709551615") && txid == UINT64_MAX);
	EXPECT(refused("--txid=18446744073709551616",
		       "option '--txid' needs a whole number, not '18446744073709551616'"));
	EXPECT(refused("--txid|-1", "option '--txid' needs a whole number, not '-1'"));
	EXPECT(refused("--txid=1k", "option '--txid' needs a whole number, not '1k'"));
	EXPECT(refused("--txid= 1", "option '--txid' needs a whole number, not ' 1'"));
	EXPECT(refused("--txid=", "option '--txid' needs a whole number, not ''"));
	EXPECT(parse("--ring=5") && ring_bytes == 5);
	EXPECT(parse("--ring=5k") && ring_bytes == 5 << 10);
	EXPECT(parse("--ring=5K") && ring_bytes == 5 << 10);
	EXPECT(parse("--ring=64M") && ring_bytes == 64 << 20);
	EXPECT(parse("--ring=17179869183G") && ring_bytes == 17179869183ull << 30);
	EXPECT(refused("--ring=17179869184G",
		       "option '--ring' needs a size such as 64M, not '17179869184G'"));
	EXPECT(refused("--ring=64MB", "option '--ring' needs a size such as 64M, not '64MB'"));
	EXPECT(refused("--ring=64m", "option '--ring' needs a size such as 64M, not '64m'"));
	EXPECT(refused("--ring=M", "option '--ring' needs a size such as 64M, not 'M'"));
	return NULL;
}

/* Seconds may have a fraction, are finite and not negative. */
static const char *test_seconds(void)
{
	static const char *const BAD[] = {"-1", "nan", "inf", "0x10", "1s", "", " 1", "1e999", "."};
	char line[64], why[128];

	EXPECT(parse("--a-very-long-option-name=0.25") && timeout_s == 0.25);
	EXPECT(parse("--a-very-long-option-name|1e3") && timeout_s == 1000);
	EXPECT(parse("--a-very-long-option-name=0") && timeout_s == 0);
	for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
		snprintf(line, sizeof(line), "--a-very-long-option-name=%s", BAD[i]);
		snprintf(why, sizeof(why),
			 "option '--a-very-long-option-name' needs seconds such as 0.5, not '%s'",
			 BAD[i]);
		EXPECT(refused(line, why));
	}
	return NULL;
}

/* A wrong option is named, and nothing else is said. */
static const char *test_wrong_options(void)
{
	EXPECT(refused("--lisen", "unknown option '--lisen'"));
	EXPECT(refused("--lisen=secret", "unknown option '--lisen'"));
	EXPECT(refused("--jso", "unknown option '--jso'"));
	EXPECT(refused("--=x", "unknown option '--'"));
	EXPECT(refused("-j", "unknown option '-j'"));
	EXPECT(refused("--json=1", "option '--json' takes no value"));
	EXPECT(refused("--state-dir", "option '--state-dir' needs DIR"));
	EXPECT(refused("--state-dir|--json", "option '--state-dir' needs DIR"));
	EXPECT(refused("--state-dir=",
		       "option '--state-dir' needs a value that is not empty, not ''"));
	EXPECT(refused("--\x1b[2J\n", "unknown option '--\\x1b[2J\\x0a'"));
	return NULL;
}

/* Words are counted against the names in the usage. */
static const char *test_words(void)
{
	usage.words = "HOST:PORT DIR";
	EXPECT(parse("a:1|--json|/d") && count == 2 && json);
	EXPECT(strcmp(words[0], "a:1") == 0 && strcmp(words[1], "/d") == 0);
	EXPECT(refused("", "HOST:PORT is missing"));
	EXPECT(refused("a:1", "DIR is missing"));
	EXPECT(refused("a:1|/d|x", "one word too many: 'x'"));
	EXPECT(parse("--|--json|-x") && count == 2 && !json);
	EXPECT(strcmp(words[0], "--json") == 0);
	usage.words = "DB...";
	EXPECT(refused("--json", "DB is missing"));
	EXPECT(parse("a") && count == 1);
	EXPECT(parse("a|b|c") && count == 3);
	EXPECT(refused("a|b|c|d", "one word too many: 'd'"));
	usage.words = "";
	EXPECT(refused("a", "one word too many: 'a'"));
	return NULL;
}

/* --help names every option on stdout and ends well, whatever else is missing. */
static const char *test_help(void)
{
	usage.words = "DB...";
	for (int i = 0; i < 2; i++) {
		EXPECT(!parse(i ? "-h" : "--json|--help|--lisen") && code == EXIT_OK && !*err);
		EXPECT(strncmp(out, "usage: walwire test DB... [OPTION...]\n\nAbout it.\n\n", 48) ==
		       0);
		EXPECT(strstr(out, "\n  --json                  print JSON\n"));
		EXPECT(strstr(out, "\n  --state-dir DIR         a directory\n"
				   "                          in two lines\n"));
		EXPECT(strstr(out, "\n  --a-very-long-option-name SECONDS\n"
				   "                          a time\n"));
		EXPECT(strstr(out, "\n  --help                  print this\n"));
	}
	usage.words = "";
	return NULL;
}

/* The state directory: what was said, else the user's own. */
static const char *test_state_dir(void)
{
	bool root = geteuid() == 0;

	setenv("WALWIRE_STATE_DIR", "/said", 1);
	EXPECT(strcmp(default_state_dir(), "/said") == 0);
	setenv("WALWIRE_STATE_DIR", "", 1);
	setenv("XDG_STATE_HOME", "/xdg", 1);
	setenv("HOME", "/home/me", 1);
	if (root) {
		EXPECT(strcmp(default_state_dir(), "/var/lib/walwire") == 0);
		EXPECT(seteuid(65534) == 0);
	}
	EXPECT(strcmp(default_state_dir(), "/xdg/walwire") == 0);
	setenv("XDG_STATE_HOME", "relative", 1);
	EXPECT(strcmp(default_state_dir(), "/home/me/.local/state/walwire") == 0);
	unsetenv("XDG_STATE_HOME");
	EXPECT(strcmp(default_state_dir(), "/home/me/.local/state/walwire") == 0);
	/* The leak checker traces us at the end, which a change of user forbids. */
	EXPECT(!root || (seteuid(0) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0));
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
	run("options_defaults", test_defaults);
	run("options_values", test_values);
	run("options_numbers", test_numbers);
	run("options_seconds", test_seconds);
	run("options_wrong_options", test_wrong_options);
	run("options_words", test_words);
	run("options_help", test_help);
	run("options_state_dir", test_state_dir);
	return failed;
}
