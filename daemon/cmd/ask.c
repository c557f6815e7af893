#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/control.h"
#include "daemon/cmd/cmd.h"

static void explain(char *to, size_t bytes, const char *state_dir, int err)
{
	if (err == -ENOENT || err == -ECONNREFUSED)
		snprintf(to, bytes,
			 "no walwire answers in '%s'; is it running? "
			 "name its place with --state-dir",
			 state_dir);
	else if (err == -EACCES || err == -EPERM)
		snprintf(to, bytes, "the walwire in '%s' belongs to another user; ask as that user",
			 state_dir);
	else if (err == -ETIMEDOUT)
		snprintf(to, bytes, "the walwire in '%s' does not answer; it runs, but hangs",
			 state_dir);
	else
		snprintf(to, bytes, "cannot ask the walwire in '%s': %s", state_dir,
			 strerror(-err));
}

enum ask_result node_ask(const char *state_dir, const char *line, struct answer *ret_a)
{
	struct answer a = {.fd = -1};
	char first[sizeof(a.sentence)] = "";
	const char *said;
	int err;

	err = control_ask(state_dir, line, &a.stream, &a.fd);
	if (err) {
		explain(a.sentence, sizeof(a.sentence), state_dir, err);
		*ret_a = a;
		return err == -ENOENT || err == -ECONNREFUSED ? ASK_NOBODY : ASK_FAILED;
	}
	if (!fgets(first, sizeof(first), a.stream))
		first[0] = 0;
	first[strcspn(first, "\n")] = 0;
	if (strcmp(first, "ok") == 0) {
		*ret_a = a;
		return ASK_OK;
	}
	fclose(a.stream);
	if (a.fd >= 0)
		close(a.fd);
	a = (struct answer){.fd = -1};
	said = strchr(first, ' ');
	strcpy(a.sentence, said ? said + 1 : "what answered is not a walwire");
	*ret_a = a;
	return strncmp(first, "busy ", 5) == 0 ? ASK_BUSY : ASK_REFUSED;
}

static volatile sig_atomic_t stop;

static void on_stop(int signal)
{
	(void)signal;
	stop = 1;
}

void stop_on_signals(void)
{
	/* Without SA_RESTART: a write to a reader that has stopped reading ends too. */
	struct sigaction a = {.sa_handler = on_stop, .sa_flags = (int)SA_RESETHAND};

	sigaction(SIGINT, &a, NULL);
	sigaction(SIGTERM, &a, NULL);
}

bool stop_requested(void)
{
	return stop;
}

void nap_ns(uint64_t ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(ns / 1000000000u),
		.tv_nsec = (long)(ns % 1000000000u),
	};

	nanosleep(&ts, NULL);
}
