/* cmd.h - what the commands share: their table, their options, asking a node.
 *
 * Commands are the only code that prints, logs or exits. Results go to stdout, the rest to stderr.
 * A command returns its exit code. */
#ifndef WALWIRE_CMD_H
#define WALWIRE_CMD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum exit_code { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_DIFFERENCE = 3 };

struct command {
	const char *name;
	int (*run)(int argc, char **argv); /* argv[0] is the name; argv ends with NULL */
	const char *help;		   /* one line */
};

int cmd_primary(int argc, char **argv);
int cmd_replica(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_wait(int argc, char **argv);
int cmd_tail(int argc, char **argv);

/* Options: `--name`, `--name VALUE`, `--name=VALUE`; the last one counts. "--" ends them. What is
 * no option is a word. A value that begins with "--" needs the form with '='. */
enum option_kind {
	OPTION_FLAG,	 /* bool *to */
	OPTION_STRING,	 /* const char **to; never empty, lives as long as argv */
	OPTION_SIZE,	 /* uint64_t *to, bytes: 64M; suffixes k, M, G, powers of 1024 */
	OPTION_UNSIGNED, /* uint64_t *to */
	OPTION_SECONDS,	 /* double *to, >= 0: 0.5 */
};

struct option_spec {
	const char *name; /* without the dashes; NULL ends the table */
	enum option_kind kind;
	void *to;	     /* holds the default; untouched when the option is not there */
	const char *metavar; /* not for a flag */
	const char *help;    /* may have several lines */
};

struct usage {
	const char *command;
	const char *words; /* a name for each word, as in "HOST:PORT DIR"; the last one may stand
			    * for one or more, as in "DB..."; "" for none */
	const char *about; /* a short explanation for --help */
	const struct option_spec *options;
};

/* Read argv[1..]. Words are stored in words[] (NULL when there are none to come), which has room
 * for words_max. False: the command ends with *ret_exit: --help was printed, or one line on stderr
 * names the word that is wrong. */
bool options_parse(const struct usage *u, int argc, char **argv, const char **words, int words_max,
		   int *ret_words, int *ret_exit);

/* Where a node keeps its state unless told: $WALWIRE_STATE_DIR; /var/lib/walwire for root;
 * $XDG_STATE_HOME/walwire; $HOME/.local/state/walwire. Static memory. */
const char *default_state_dir(void);

#define STATE_DIR_HELP                                               \
	"where the node keeps its state (else $WALWIRE_STATE_DIR,\n" \
	"as root /var/lib/walwire, else ~/.local/state/walwire)"

/* Ask the node in `state_dir` (see control.h). */
enum ask_result {
	ASK_OK,
	ASK_BUSY,    /* it is alive: ask again */
	ASK_REFUSED, /* it is alive and answers with an error */
	ASK_NOBODY,  /* none runs there */
	ASK_FAILED,  /* it could not be asked */
};
struct answer {
	FILE *stream; /* ASK_OK: stands after the line "ok"; the caller closes it. Else NULL */
	int fd;	      /* ASK_OK: what came with it, the caller's, or -1 */
	char sentence[512]; /* else: why, for log_line() */
};
enum ask_result node_ask(const char *state_dir, const char *line, struct answer *ret_a);

/* From now on SIGINT and SIGTERM ask the command to stop, once; the second one kills it. */
void stop_on_signals(void);
bool stop_requested(void);

/* Sleep; less when a signal comes. */
void nap_ns(uint64_t ns);

#endif
