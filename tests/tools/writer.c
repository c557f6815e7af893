/* writer.c - an application that does to its database whatever applications may do.
 *
 * Stock SQLite, nothing of walwire. Every counted commit moves c.n by one and keeps the promises of
 * state.h; everything that has to survive stands in the database, so kill -9 is always allowed.
 * Several writers, in C and in Python, may work on one database.
 *
 * usage: writer DB [--create] [--page-size N] [--auto-vacuum 0|1|2] [--seed N] [--seconds S]
 *               [--commits N] [--modes LIST] [--sync MODE] [--autocheckpoint N] [--rate N]
 *               [--big-mb N] [--max-mb N] [--busy-ms N] [--name NAME]
 *
 * LIST is words separated by commas: all, or the modes in the table below; -WORD takes one away,
 * WORD=N gives it another weight. Prints one JSON line at the end. SIGTERM ends it in good order.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/tools/writer.h"

volatile sig_atomic_t writer_stop;

static void on_signal(int sig)
{
	(void)sig;
	writer_stop = 1;
}

static uint64_t latency_percentile(const struct writer *w, double p)
{
	uint64_t total = 0, seen = 0;

	for (int i = 0; i < 64 * 8; i++)
		total += w->latency[i];
	for (int i = 0; i < 64 * 8; i++) {
		seen += w->latency[i];
		if (seen && (double)seen >= p * (double)total) {
			int octave = i / 8;

			return octave < 3 ? 1ull << octave
					  : (8ull + (uint64_t)i % 8) << (octave - 3);
		}
	}
	return 0;
}

static void work(struct writer *w)
{
	uint64_t start_us = state_now_us(), now_us = start_us;
	int64_t total = 0, paced = 0;

	for (int m = 0; m < MODES; m++)
		total += w->weight[m];
	while (!writer_stop && total) {
		int64_t pick = (int64_t)writer_random(w, (uint64_t)total);
		enum mode m = SMALL;

		now_us = state_now_us();
		if (w->seconds >= 0 && (double)(now_us - start_us) > w->seconds * 1e6)
			break;
		if (w->commits_max >= 0 && w->commits >= w->commits_max)
			break;
		if (w->rate > 0) {
			uint64_t due_us = start_us + (uint64_t)(paced++ * 1000000 / w->rate);

			if (due_us > now_us)
				usleep((useconds_t)(due_us - now_us));
		}
		while (pick >= w->weight[m])
			pick -= w->weight[m++];
		if (!writer_act(w, m))
			w->done[m]++;
		if (w->reader)
			writer_long_read(w);
	}
	w->seconds = (double)(state_now_us() - start_us) / 1e6;
}

/* -- command line and result -- */

static void parse_modes(struct writer *w, const char *text)
{
	char list[1024];

	snprintf(list, sizeof(list), "%s", text);
	memset(w->weight, 0, sizeof(w->weight));
	for (char *word = strtok(list, ","); word; word = strtok(NULL, ",")) {
		bool minus = *word == '-', found = false;
		char *number = strchr(word, '=');

		word += minus;
		if (number)
			*number++ = 0;
		for (int m = 0; m < MODES; m++) {
			if (strcmp(word, "all") && strcmp(word, mode_name[m]))
				continue;
			w->weight[m] = minus ? 0 : number ? atoi(number) : mode_weight[m];
			found = true;
		}
		if (!found) {
			fprintf(stderr, "writer: no mode '%s'\n", word);
			exit(2);
		}
	}
}

/* One option: it sets a number, or a text, or (with neither) is looked at by name. */
struct setting {
	const char *name;
	int64_t *number;
	const char **text;
};

static void parse(struct writer *w, int argc, char **argv)
{
	const char *seconds = NULL, *modes = NULL;
	int64_t seed = 1;
	const struct setting settings[] = {
		{"create", NULL, NULL},
		{"page-size", &w->page_size, NULL},
		{"auto-vacuum", &w->auto_vacuum, NULL},
		{"seed", &seed, NULL},
		{"seconds", NULL, &seconds},
		{"commits", &w->commits_max, NULL},
		{"modes", NULL, &modes},
		{"sync", NULL, &w->sync},
		{"autocheckpoint", &w->autocheckpoint, NULL},
		{"rate", &w->rate, NULL},
		{"big-mb", &w->big_mb, NULL},
		{"max-mb", &w->max_mb, NULL},
		{"busy-ms", &w->busy_ms, NULL},
		{"name", NULL, &w->name},
	};
	enum { COUNT = sizeof(settings) / sizeof(settings[0]) };
	struct option options[COUNT + 1] = {{0}};
	int at, code;

	for (int i = 0; i < COUNT; i++)
		options[i] = (struct option){settings[i].name, i ? required_argument : no_argument,
					     NULL, 0};
	while ((code = getopt_long(argc, argv, "", options, &at)) == 0) {
		if (settings[at].number)
			*settings[at].number = atoll(optarg);
		else if (settings[at].text)
			*settings[at].text = optarg;
		else
			w->create = true;
	}
	if (code != -1 || optind != argc - 1) {
		fprintf(stderr, "usage: writer DB [OPTION...]; see the head of writer.c\n");
		exit(2);
	}
	if (seconds)
		w->seconds = atof(seconds);
	if (modes)
		parse_modes(w, modes);
	w->rng = (uint64_t)seed * 0x9e3779b97f4a7c15u ^ 0x5851f42d4c957f2du;
	w->path = argv[optind];
}

static void print_result(const struct writer *w)
{
	printf("{\"name\": \"%s\", \"sqlite\": \"%s\", \"seconds\": %.3f, \"commits\": %lld, \"n\": %lld, "
	       "\"busy\": %lld, \"checkpoints_busy\": %lld, \"small_us_p50\": %llu, \"small_us_p99\": %llu, "
	       "\"small_us_max\": %llu",
	       w->name, sqlite3_libversion(), w->seconds, (long long)w->commits, (long long)w->n,
	       (long long)w->busy, (long long)w->checkpoints_busy,
	       (unsigned long long)latency_percentile(w, 0.5),
	       (unsigned long long)latency_percentile(w, 0.99),
	       (unsigned long long)w->latency_max_us);
	for (int m = 0; m < MODES; m++)
		printf(", \"%s\": %lld", mode_name[m], (long long)w->done[m]);
	printf("}\n");
}

int main(int argc, char **argv)
{
	struct writer w = {.name = "c",
			   .sync = "NORMAL",
			   .page_size = 4096,
			   .auto_vacuum = 2,
			   .autocheckpoint = 1000,
			   .commits_max = -1,
			   .seconds = -1,
			   .rng = 1,
			   .big_mb = 4,
			   .max_mb = 8,
			   .busy_ms = 10000,
			   .weight = {[SMALL] = 1}};

	parse(&w, argc, argv);
	w.data = malloc(DATA_MAX + 8);
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	if (!w.data)
		return 1;
	writer_open(&w, true);
	if (w.seconds >= 0 || w.commits_max >= 0 || !w.create)
		work(&w);
	if (w.reader)
		sqlite3_close(w.reader);
	writer_close(&w);
	free(w.data);
	print_result(&w);
	return 0;
}
