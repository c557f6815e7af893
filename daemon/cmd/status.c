#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/cmd/cmd.h"

#define WATCH_NS 1000000000ull

/* Print one picture after `before`. */
static int print_once(const char *state_dir, bool json, const char *before)
{
	struct answer answer;
	char bytes[16384];
	size_t n;

	if (node_ask(state_dir, json ? "status json" : "status text", &answer) != ASK_OK) {
		log_line("%s", answer.sentence);
		return EXIT_FAILED;
	}
	fputs(before, stdout);
	while ((n = fread(bytes, 1, sizeof(bytes), answer.stream)) > 0)
		fwrite(bytes, 1, n, stdout);
	fclose(answer.stream);
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

/* On a terminal each picture takes the place of the last one; elsewhere they follow one another. */
static int watch(const char *state_dir, bool json)
{
	const bool redraw = isatty(STDOUT_FILENO) && !json;
	const char *before = redraw ? "\033[H\033[2J" : "";

	stop_on_signals();
	while (!stop_requested()) {
		if (print_once(state_dir, json, before) != EXIT_OK)
			return stop_requested() ? EXIT_OK : EXIT_FAILED;
		if (!redraw && !json)
			before = "\n";
		nap_ns(WATCH_NS);
	}
	return EXIT_OK;
}

int cmd_status(int argc, char **argv)
{
	const char *state_dir = default_state_dir();
	bool json = false, again = false;
	const struct option_spec options[] = {
		{"json", OPTION_FLAG, &json, NULL,
		 "one line of JSON; a number that is not known is null"},
		{"watch", OPTION_FLAG, &again, NULL, "print it anew every second until stopped"},
		{"state-dir", OPTION_STRING, &state_dir, "DIR", STATE_DIR_HELP},
		{NULL},
	};
	const struct usage usage = {
		.command = "status",
		.words = "",
		.about = "Shows what the node on this host knows of itself and its replicas.\n"
			 "Exit: 0 shown, 1 nobody answers.",
		.options = options,
	};
	int words, code;

	if (!options_parse(&usage, argc, argv, NULL, 0, &words, &code))
		return code;
	return again ? watch(state_dir, json) : print_once(state_dir, json, "");
}
