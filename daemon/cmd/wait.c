#include <inttypes.h>
#include <string.h>

#include "daemon/base/control.h"
#include "daemon/base/log.h"
#include "daemon/base/loop.h"
#include "daemon/cmd/cmd.h"

#define PAUSE_NS_MIN  200000ull
#define PAUSE_NS_MAX  20000000ull
#define TIMEOUT_S_MAX 1e9 /* thirty years; fits the clock */
#define TXID_WORD_MAX 24
#define TIMEOUT_S     60.0

struct wait {
	const char *state_dir, *db, *level;
	double timeout_s;
	char want[TXID_WORD_MAX]; /* "-" until it is known */
	char have[TXID_WORD_MAX];
};

/* Ask once. 1 reached, 0 not yet, -1 it makes no sense to go on. */
static int ask_once(struct wait *w)
{
	char line[CONTROL_LINE_MAX], word[CONTROL_WORD_MAX], verdict[16];
	struct answer answer;
	enum ask_result result;
	int n;

	control_word(word, w->db);
	snprintf(line, sizeof(line), "wait %s %s %s", word, w->level, w->want);
	result = node_ask(w->state_dir, line, &answer);
	if (result == ASK_BUSY)
		return 0;
	if (result != ASK_OK) {
		log_line("%s", answer.sentence);
		return -1;
	}
	n = fscanf(answer.stream, "%15s %23s %23s", verdict, w->have, w->want);
	fclose(answer.stream);
	if (n == 2 && strcmp(verdict, "reached") == 0)
		return 1;
	if (n == 3 && strcmp(verdict, "not") == 0)
		return 0;
	log_line("the walwire in '%s' speaks another language; is it another version?",
		 w->state_dir);
	return -1;
}

static void log_late(const struct wait *w)
{
	bool wants = strcmp(w->want, "-") != 0, has = strcmp(w->have, "-") != 0;
	char prefix[DB_NAME_MAX + 8] = "";

	if (*w->db)
		snprintf(prefix, sizeof(prefix), "'%s': ", w->db);
	log_line("%snot in time (%g s): %s%s is not %s; it is at %s%s", prefix, w->timeout_s,
		 wants ? "txid " : "what is captured now", wants ? w->want : "", w->level,
		 has ? w->have : "no txid that is known", has ? "" : "; see: walwire status");
}

static int wait_until(struct wait *w)
{
	uint64_t deadline = clock_now_ns() + (uint64_t)(w->timeout_s * 1e9);
	uint64_t pause = PAUSE_NS_MIN;

	for (;;) {
		int reached = ask_once(w);
		uint64_t now = clock_now_ns();

		if (reached > 0) {
			printf("%s\n", w->have);
			return EXIT_OK;
		}
		if (reached < 0)
			return EXIT_FAILED;
		if (now >= deadline) {
			log_late(w);
			return EXIT_FAILED;
		}
		nap_ns(pause < deadline - now ? pause : deadline - now);
		pause = pause * 3 / 2 < PAUSE_NS_MAX ? pause * 3 / 2 : PAUSE_NS_MAX;
	}
}

int cmd_wait(int argc, char **argv)
{
	struct wait w = {
		.state_dir = default_state_dir(),
		.db = "",
		.level = "applied",
		.timeout_s = TIMEOUT_S,
		.want = "-",
		.have = "-",
	};
	uint64_t txid = UINT64_MAX;
	const struct option_spec options[] = {
		{"db", OPTION_STRING, &w.db, "NAME", "the database, where there are several"},
		{"txid", OPTION_UNSIGNED, &txid, "N",
		 "wait for this commit (else: what is captured now)"},
		{"level", OPTION_STRING, &w.level, "LEVEL",
		 "received, applied (default) or durable"},
		{"timeout", OPTION_SECONDS, &w.timeout_s, "S",
		 "give up after so many seconds (default 60)"},
		{"state-dir", OPTION_STRING, &w.state_dir, "DIR", STATE_DIR_HELP},
		{NULL},
	};
	const struct usage usage = {
		.command = "wait",
		.words = "",
		.about =
			"Waits until a commit is where it should be, and prints the txid reached.\n"
			"On a primary: on all connected replicas, of which there is at least one.\n"
			"On a replica: on this node.\n"
			"Exit: 0 reached, 1 not in time.",
		.options = options,
	};
	int words, code;

	if (!options_parse(&usage, argc, argv, NULL, 0, &words, &code))
		return code;
	if (strcmp(w.level, "received") && strcmp(w.level, "applied") &&
	    strcmp(w.level, "durable")) {
		log_line("wait: unknown level '%s'; see: walwire wait --help", w.level);
		return EXIT_USAGE;
	}
	if (strlen(w.db) >= DB_NAME_MAX) {
		log_line("wait: too long a name '%s'; see: walwire wait --help", w.db);
		return EXIT_USAGE;
	}
	if (txid != UINT64_MAX)
		snprintf(w.want, sizeof(w.want), "%" PRIu64, txid);
	if (w.timeout_s > TIMEOUT_S_MAX)
		w.timeout_s = TIMEOUT_S_MAX;
	return wait_until(&w);
}
