#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/base/log.h"
#include "daemon/cmd/cmd.h"
#include "daemon/cmd/primary.h"
#include "daemon/wire/address.h"

#define CAPTURE_STEPS	 64 /* of one database in one cycle */
#define DEFER_CYCLES_MAX 64 /* a question waits so long for the capture to catch up */

/* ---- one cycle ---- */

static unsigned int capture_all(struct primary *p)
{
	unsigned int work = 0;

	for (int i = 0; i < p->count; i++) {
		struct primary_db *d = p->db[i];

		if (d->state == DB_WAITING) {
			primary_try_attach(p, i);
			continue;
		}
		for (int n = 0; n < CAPTURE_STEPS; n++) {
			unsigned int did = capture_do_work(&d->capture);

			if (!did)
				break;
			work += did;
			/* A read from the page cache is complete when it is submitted. */
			loop_reap(&p->node.loop);
		}
		if (d->feed.at.txid != d->seen_txid) {
			pace_commits(&p->pace, p->node.loop.now_ns, d->feed.at.txid - d->seen_txid);
			d->seen_txid = d->feed.at.txid;
		}
		primary_check_identity(p, i);
	}
	return work;
}

/* ---- status ---- */

static void fill(void *ctx, struct node_status *s)
{
	struct primary *p = ctx;

	snprintf(s->role, sizeof(s->role), "primary");
	snprintf(s->tap, sizeof(s->tap), "%s", tap_describe(p->tap));
	snprintf(s->idle, sizeof(s->idle), "%s", pace_mode_name(p->pace.mode));
	snprintf(s->state_now, sizeof(s->state_now), "%s", pace_state_name(p->pace.state));
	s->databases = p->count;
	for (int i = 0; i < p->count; i++) {
		const struct primary_db *d = p->db[i];
		const struct feed *f = &d->feed;
		struct db_status *to = &s->db[i];
		bool attached = d->state == DB_ATTACHED;

		snprintf(to->name, sizeof(to->name), "%s", f->name);
		snprintf(to->path, sizeof(to->path), "%s", f->path);
		snprintf(to->state, sizeof(to->state), "%s", attached ? "attached" : "waiting");
		snprintf(to->detail, sizeof(to->detail), "%s", d->detail);
		to->timeline = attached ? f->at.timeline : STATUS_UNKNOWN;
		to->txid = attached ? f->at.txid : STATUS_UNKNOWN;
		to->chain = attached ? f->at.chain : STATUS_UNKNOWN;
		to->fingerprint = STATUS_UNKNOWN;
		to->wal_bytes = attached ? 32 + (uint64_t)d->capture.header.mx_frame *
						   batch_frame_bytes(f->page_bytes) :
					   STATUS_UNKNOWN;
		to->received = to->applied = to->durable = to->lag_ns = STATUS_UNKNOWN;
		server_status(&p->server, f, to);
		for (int c = 0; c < COUNTER_COUNT; c++)
			to->counter[c] = counter_get(f->counters, (enum counter_id)c);
	}
}

static int ring_fd(void *ctx, const char *name)
{
	struct primary *p = ctx;

	for (int i = 0; i < p->count; i++)
		if (!strcmp(p->feeds[i]->name, name) || (!*name && p->count == 1))
			return segment_readonly_fd(&p->feeds[i]->segment);
	return -ENOENT;
}

/* ---- the command ---- */

static bool add_database(struct primary *p, const char *word, uint64_t ring_bytes, int cpu)
{
	struct primary_db *d;
	char name[DB_NAME_MAX], path[PATH_MAX];
	int err;

	if (p->count == DATABASES_MAX) {
		log_line("more than %d databases; start another primary for '%s'", DATABASES_MAX, word);
		return false;
	}
	/* A link is followed now: the -wal stands beside the file itself. */
	if (!realpath(word, path))
		snprintf(path, sizeof(path), "%s", word);
	if (!node_db_name(word, name))
		return false;
	for (int i = 0; i < p->count; i++) {
		if (!strcmp(p->db[i]->feed.name, name)) {
			log_line("two databases are called '%s'; start another primary for '%s'",
				 name, word);
			return false;
		}
	}
	d = calloc(1, sizeof(*d));
	if (!d) {
		log_line("too little memory");
		return false;
	}
	err = feed_open(&d->feed, &p->node.loop, name, path, ring_bytes, cpu);
	if (err) {
		log_line("too little memory for a ring of %llu MB (%s); choose a smaller --ring-bytes",
			 (unsigned long long)(ring_bytes >> 20), strerror(-err));
		free(d);
		return false;
	}
	d->feed.own_clock = true;
	snprintf(d->record_path, sizeof(d->record_path), "%s/%s.primary", p->node.state_dir, name);
	p->db[p->count] = d;
	p->feeds[p->count++] = &d->feed;
	return true;
}

/* The first look at each: what cannot work is an error now, what may come is waited for. */
static bool attach_first(struct primary *p)
{
	char why[512];

	for (int i = 0; i < p->count; i++) {
		enum conn_problem problem = primary_attach(p, i, CONN_BUSY_MS, why, sizeof(why));

		if (primary_fatal(problem)) {
			log_line("%s", why);
			return false;
		}
		if (problem == CONN_OK)
			continue;
		log_line("%s; waiting for it", why);
		snprintf(p->db[i]->detail, sizeof(p->db[i]->detail), "%s", why);
	}
	for (int i = 0; i < p->count; i++)
		if (p->db[i]->state == DB_ATTACHED)
			log_info("attached to '%s'", p->db[i]->feed.path);
	return true;
}

/* Before anything is opened or loaded: what cannot work needs no further word. */
static bool look_first(struct primary *p)
{
	char why[512];

	for (int i = 0; i < p->count; i++) {
		if (primary_fatal(conn_look(p->db[i]->feed.path, why, sizeof(why)))) {
			log_line("%s", why);
			return false;
		}
	}
	return true;
}

static void run(struct primary *p)
{
	const struct control_source source = {.fill = fill, .ring_fd = ring_fd, .ctx = p};

	while (!p->node.stop) {
		unsigned int work = node_cycle(&p->node);
		unsigned int captured;

		if (p->tap_event) {
			p->tap_event = false;
			primary_take_tap_events(p);
		}
		primary_rest_tap(p);
		captured = capture_all(p);
		work += captured + server_do_work(&p->server);
		work += loop_reap(&p->node.loop);
		/* An answer tells of everything that was published when it was asked for. */
		if (!captured || ++p->deferred > DEFER_CYCLES_MAX) {
			p->deferred = 0;
			if (control_serve(p->node.control, &source))
				work++;
		}
		counter_max(p->feeds[0]->counters, COUNTER_cycle_ns_max,
			    clock_now_ns() - p->node.cycle_begin_ns);
		if (!work)
			primary_idle(p);
	}
}

static void end(struct primary *p)
{
	uint64_t deadline = clock_now_ns() + 3000 * MS;

	while (!server_stop(&p->server) && clock_now_ns() < deadline) {
		loop_wait(&p->node.loop, 10 * MS);
		worker_collect(&p->node.worker);
	}
}

static bool parse_tap(const char *word, enum tap_mode *ret_mode)
{
	static const char *const words[] = {
		[TAP_MODE_AUTO] = "auto",
		[TAP_MODE_LOCKS] = "locks",
		[TAP_MODE_WRITES] = "writes",
		[TAP_MODE_OFF] = "off",
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
		if (!strcmp(word, words[i])) {
			*ret_mode = (enum tap_mode)i;
			return true;
		}
	}
	log_line("primary: unknown --tap '%s'; it is auto, locks, writes or off", word);
	return false;
}

static bool open_tap(struct primary *p, enum tap_mode mode)
{
	char why[256] = "";

	if (tap_open(&p->tap, mode, why, sizeof(why)) < 0) {
		log_line("too little memory");
		return false;
	}
	primary_review_tap(p);
	if (why[0] && mode != TAP_MODE_OFF)
		log_line("no eBPF: %s; commits are found by naps alone, of %llu us to %llu ms", why,
			 (unsigned long long)PACE_NAP_NS / 1000,
			 (unsigned long long)PACE_NAP_QUIET_NS / 1000000);
	return true;
}

static int serve(struct primary *p, const char *listen, enum tap_mode tap_mode)
{
	char why[512] = "";
	int code = EXIT_FAILED;

	if (!look_first(p))
		goto undo_worker;
	if (server_open(&p->server, &p->node.loop, &p->node.worker, p->feeds, p->count, listen,
			p->feeds[0]->counters, why, sizeof(why))) {
		log_line("%s", why);
		goto undo_worker;
	}
	if (!open_tap(p, tap_mode))
		goto undo_server;
	if (attach_first(p)) {
		log_info("primary at %s; tap: %s", listen, tap_describe(p->tap));
		run(p);
		code = EXIT_OK;
	}
	end(p);
	worker_close(&p->node.worker);
	server_close(&p->server);
	for (int i = 0; i < p->count; i++)
		if (p->db[i]->state == DB_ATTACHED)
			capture_close(&p->db[i]->capture);
	tap_close(p->tap);
	return code;
undo_server:
	end(p);
	worker_close(&p->node.worker);
	server_close(&p->server);
	return code;
undo_worker:
	worker_close(&p->node.worker);
	return code;
}

static bool check_listen(const char *listen, bool insecure)
{
	struct address a;
	char why[512];

	if (address_resolve(&a, listen, true, why, sizeof(why))) {
		log_line("%s", why);
		return false;
	}
	if (!a.loopback && !insecure) {
		log_line("'%s' can be reached from other hosts and the link is not encrypted; give "
			 "--insecure if the network is trusted, or tunnel it",
			 listen);
		return false;
	}
	return true;
}

int cmd_primary(int argc, char **argv)
{
	const char *listen = DEFAULT_LISTEN, *state_dir = default_state_dir(), *cpu_word = NULL;
	const char *idle_word = "adaptive", *tap_word = "auto";
	uint64_t ring_bytes = RING_BYTES_DEFAULT;
	bool durable = false, insecure = false;
	const struct option_spec options[] = {
		{"listen", OPTION_STRING, &listen, "HOST:PORT",
		 "where replicas connect (default " DEFAULT_LISTEN ")"},
		{"state-dir", OPTION_STRING, &state_dir, "DIR", STATE_DIR_HELP},
		{"cpu", OPTION_STRING, &cpu_word, "N", "pin the working thread to this core"},
		{"idle", OPTION_STRING, &idle_word, "MODE",
		 "spin (a core of its own), adaptive (default) or sleep"},
		{"tap", OPTION_STRING, &tap_word, "MODE",
		 "what eBPF may listen to: auto (default), locks, writes, off"},
		{"durable", OPTION_FLAG, &durable, NULL,
		 "sync the WAL before a commit is shipped, so that no replica is\n"
		 "ever ahead of the primary's disk"},
		{"ring-bytes", OPTION_SIZE, &ring_bytes, "SIZE",
		 "memory for commits on their way, each database (default 64M)"},
		{"insecure", OPTION_FLAG, &insecure, NULL,
		 "allow an address off this host without encryption"},
		{NULL},
	};
	const struct usage usage = {
		.command = "primary",
		.words = "DB...",
		.about = "Attaches to the databases of running applications and serves their commits to\n"
			 "replicas. The databases are in WAL mode; nothing is written to them.",
		.options = options,
	};
	const char *words[DATABASES_MAX + 1];
	static struct primary p;
	enum pace_mode mode;
	enum tap_mode tap_mode;
	int64_t cpu;
	int count, code;

	if (!options_parse(&usage, argc, argv, words, DATABASES_MAX, &count, &code))
		return code;
	if (pace_parse(idle_word, &mode)) {
		log_line("primary: unknown --idle '%s'; it is spin, adaptive or sleep", idle_word);
		return EXIT_USAGE;
	}
	if (!parse_tap(tap_word, &tap_mode) || !node_check_ring(&ring_bytes) ||
	    !node_check_cpu(cpu_word, &cpu))
		return EXIT_USAGE;
	if (!check_listen(listen, insecure))
		return EXIT_FAILED;
	if (!node_open(&p.node, state_dir, cpu))
		return EXIT_FAILED;
	pace_init(&p.pace, mode, false);
	primary_idle_init(&p);
	p.durable = durable;
	code = EXIT_FAILED;
	for (int i = 0; i < count; i++) {
		if (!add_database(&p, words[i], ring_bytes, (int)cpu)) {
			worker_close(&p.node.worker);
			goto out;
		}
	}
	code = serve(&p, listen, tap_mode);
out:
	for (int i = 0; i < p.count; i++) {
		feed_close(&p.db[i]->feed);
		free(p.db[i]);
	}
	node_close(&p.node);
	return code;
}
