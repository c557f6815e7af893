/* walwire VERB ...: the table of commands, and nothing else. */
#include <stdio.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cmd/cmd.h"

#define WALWIRE_VERSION "0.1.0"

static const struct command COMMANDS[] = {
	{"primary", cmd_primary, "replicate databases of this host's applications"},
	{"replica", cmd_replica, "keep copies of a primary's databases, commit by commit"},
	{"status", cmd_status, "show what the node on this host knows"},
	{"wait", cmd_wait, "wait until a commit has been received, applied or made durable"},
	{"tail", cmd_tail, "print one line per commit as it passes"},
};
#define COMMAND_COUNT (sizeof(COMMANDS) / sizeof(COMMANDS[0]))

static int print_help(void)
{
	printf("walwire " WALWIRE_VERSION
	       " replicates SQLite databases of unmodified applications, "
	       "commit by commit.\n\nusage: walwire VERB ...\n\n");
	for (size_t i = 0; i < COMMAND_COUNT; i++)
		printf("  %-10s %s\n", COMMANDS[i].name, COMMANDS[i].help);
	printf("\nwalwire VERB --help explains one of them.\n");
	return EXIT_OK;
}

static int run(int argc, char **argv)
{
	if (argc < 2) {
		log_line("a verb is missing; see: walwire --help");
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
		return print_help();
	if (!strcmp(argv[1], "--version")) {
		printf("walwire " WALWIRE_VERSION "\n");
		return EXIT_OK;
	}
	for (size_t i = 0; i < COMMAND_COUNT; i++)
		if (!strcmp(argv[1], COMMANDS[i].name))
			return COMMANDS[i].run(argc - 1, argv + 1);
	log_line("unknown verb '%s'; see: walwire --help", argv[1]);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	int code = run(argc, argv);

	/* A result that did not arrive is no success. */
	if ((fflush(stdout) != 0 || ferror(stdout)) && !stop_requested()) {
		log_line("cannot write to standard output; is there room?");
		return code ? code : EXIT_FAILED;
	}
	return code;
}
