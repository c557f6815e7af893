#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/apply/applier.h"
#include "daemon/apply/link.h"
#include "daemon/apply/lister.h"
#include "daemon/base/log.h"
#include "daemon/cmd/cmd.h"
#include "daemon/cmd/node.h"
#include "daemon/ship/server.h"

#define MS		1000000ull
#define LIST_RETRY_MS	500
#define LIST_AGAIN_MS	10000 /* a source may have got more databases */
#define SHARE_MS	50    /* how often it is seen how dense commits are */
#define TICK_MS		50    /* the longest wait while something is to be timed */
#define QUIET_MS	1000

struct replica_db {
	struct feed feed;
	struct applier applier;
	struct link link;
	bool running;
	char detail[256]; /* why not */
	char said[320];
	bool said_following;
};

struct replica {
	struct node node;
	enum pace_mode mode;
	const char *dir;
	char source_word[256];
	struct address source;
	bool durable;
	uint64_t ring_bytes;
	int cpu;
	struct replica_db *db[DATABASES_MAX];
	struct feed *feeds[DATABASES_MAX];
	int count;
	bool serving;
	struct server server;
	struct counters stray; /* of messages that belong to no database */
	struct lister lister;
	uint64_t share_ns, share_commits; /* at the last look of share_cores() */
	bool alone;			  /* on a core of its own */
	bool listed, list_failed;
	uint64_t list_ns;
	int list_said;
};

/* ---- databases ---- */

static struct replica_db *find(struct replica *r, const char *name)
{
	for (int i = 0; i < r->count; i++)
		if (!strcmp(r->db[i]->feed.name, name))
			return r->db[i];
	return NULL;
}

/* Take up the database `name`. What cannot go on is said once and stays in the status. */
static void add_database(struct replica *r, const char *name)
{
	struct replica_db *d;
	char path[DB_PATH_MAX], why[512] = "";
	int err;

	if (r->count == DATABASES_MAX || find(r, name))
		return;
	d = calloc(1, sizeof(*d));
	if (!d) {
		log_line("too little memory");
		return;
	}
	if (snprintf(path, sizeof(path), "%s/%s", r->dir, name) >= (int)sizeof(path) - 16) {
		log_line("the path of '%s' is too long", name);
		free(d);
		return;
	}
	err = feed_open(&d->feed, &r->node.loop, name, path, r->ring_bytes, r->cpu);
	if (err) {
		log_line("too little memory for a ring of %llu MB (%s); choose a smaller --ring-bytes",
			 (unsigned long long)(r->ring_bytes >> 20), strerror(-err));
		free(d);
		return;
	}
	err = applier_open(&d->applier, &d->feed, &r->node.loop, &r->node.worker, r->node.state_dir,
			   r->durable, why, sizeof(why));
	if (err) {
		log_line("%s", why);
		snprintf(d->detail, sizeof(d->detail), "%s", why);
	} else {
		link_init(&d->link, &d->feed, &r->node.loop, &d->applier, &r->source);
		d->running = true;
	}
	r->db[r->count] = d;
	r->feeds[r->count++] = &d->feed;
	r->server.feeds_count = r->count;
}

/* Those of an earlier run, so that they can be read and served before the source is there. */
static void add_known(struct replica *r)
{
	DIR *dir = opendir(r->node.state_dir);
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		char *dot = strrchr(e->d_name, '.');

		if (!dot || strcmp(dot, ".replica"))
			continue;
		*dot = 0;
		if (name_is_plain(e->d_name))
			add_database(r, e->d_name);
	}
	if (dir)
		closedir(dir);
}

/* ---- which databases are there ---- */

static void say_list_error(struct replica *r, int err)
{
	if (r->list_said == err)
		return;
	r->list_said = err;
	if (err == -EPROTONOSUPPORT)
		log_line("the source at %s speaks another version of the protocol; use the same "
			 "walwire on both sides",
			 r->source_word);
	else if (err == -EPROTO)
		log_line("what answers at %s is no walwire; check the address and port",
			 r->source_word);
	else
		log_line("no answer from %s: %s; trying again", r->source_word, strerror(-err));
}

static void listed(struct job *job)
{
	struct lister *l = (struct lister *)job;
	struct replica *r = (struct replica *)((char *)l - offsetof(struct replica, lister));
	uint64_t again = l->err || l->count == 0 ? LIST_RETRY_MS : LIST_AGAIN_MS;

	r->list_ns = r->node.loop.now_ns + again * MS;
	if (l->err) {
		say_list_error(r, l->err);
		r->list_failed = l->err == -EPROTO || l->err == -EPROTONOSUPPORT;
		return;
	}
	r->list_said = 0;
	r->list_failed = false;
	for (int i = 0; i < l->count; i++)
		add_database(r, l->name[i]);
	r->listed = true;
}

static void list_when_due(struct replica *r)
{
	if (r->lister.job.out || r->node.loop.now_ns < r->list_ns)
		return;
	worker_give(&r->node.worker, &r->lister.job);
}

/* ---- one cycle ---- */

static void say_news(struct replica *r, struct replica_db *d)
{
	char now[320] = "";

	if (!d->said_following && d->link.state == LINK_STREAM) {
		d->said_following = true;
		log_info("'%s' follows %s", d->feed.path, r->source_word);
	}
	if (d->applier.problem[0])
		snprintf(now, sizeof(now), "%s", d->applier.problem);
	else if (d->link.state == LINK_REFUSED)
		snprintf(now, sizeof(now), "'%s' is not replicated: %s", d->feed.path,
			 d->link.sentence);
	else if (d->link.state == LINK_WAITING && d->link.sentence[0])
		snprintf(now, sizeof(now), "'%s': %s; trying again at %s", d->feed.path,
			 d->link.sentence, r->source_word);
	if (!now[0] || !strcmp(now, d->said)) {
		if (!now[0] && d->link.state == LINK_STREAM)
			d->said[0] = 0;
		return;
	}
	snprintf(d->said, sizeof(d->said), "%s", now);
	log_line("%s", now);
}

static unsigned int step(struct replica *r)
{
	unsigned int work = 0;

	for (int i = 0; i < r->count; i++) {
		struct replica_db *d = r->db[i];

		if (!d->running)
			continue;
		work += link_do_work(&d->link);
		work += applier_do_work(&d->applier);
		/* Once more, so that the ack tells of what was just applied. */
		work += link_do_work(&d->link);
		say_news(r, d);
	}
	if (r->serving)
		work += server_do_work(&r->server);
	return work;
}

/* A replica on the application's own host lets it go first while commits are dense: lag is then bounded
 * by the ring, and what would suffer is the application. Rare commits are applied at once. */
static void share_cores(struct replica *r)
{
	uint64_t commits = 0, now = r->node.loop.now_ns, took = now - r->share_ns;

	if (r->alone || !r->source.loopback || took < SHARE_MS * MS)
		return;
	for (int i = 0; i < r->count; i++)
		commits += counter_get(r->feeds[i]->counters, COUNTER_commits);
	loop_step_back((commits - r->share_commits) * PACE_GAP_DENSE_NS > took);
	r->share_ns = now;
	r->share_commits = commits;
}

/* Is anything to be timed soon? Otherwise only completions matter. */
static bool restless(const struct replica *r)
{
	for (int i = 0; i < r->count; i++) {
		const struct replica_db *d = r->db[i];

		if (d->running &&
		    (d->link.state != LINK_STREAM || d->link.feed->blocked_ns ||
		     d->applier.problem[0] || d->applier.hold || !applier_idle(&d->applier) ||
		     (d->applier.known && d->applier.durable != d->applier.applied.txid)))
			return true;
	}
	return !r->listed || (r->serving && server_busy(&r->server));
}

/* Nothing can go on: what was wrong has been said. */
static bool hopeless(const struct replica *r)
{
	if (r->count == 0)
		return r->list_failed;
	for (int i = 0; i < r->count; i++)
		if (r->db[i]->running && r->db[i]->link.state != LINK_REFUSED)
			return false;
	return true;
}

/* ---- status ---- */

static const char *state_of(const struct replica_db *d)
{
	if (!d->running || d->link.state == LINK_REFUSED || d->applier.problem[0])
		return "stopped";
	if (d->link.state != LINK_STREAM)
		return "connecting";
	return d->link.seeding || d->applier.mode != APPLIER_LIVE || !d->applier.known ?
		       "seeding" :
		       "streaming";
}

static void fill(void *ctx, struct node_status *s)
{
	struct replica *r = ctx;

	snprintf(s->role, sizeof(s->role), "replica");
	snprintf(s->tap, sizeof(s->tap), "none: a replica needs no tap");
	snprintf(s->idle, sizeof(s->idle), "%s", pace_mode_name(r->mode));
	snprintf(s->state_now, sizeof(s->state_now), "%s", "awake");
	s->databases = r->count;
	for (int i = 0; i < r->count; i++) {
		const struct replica_db *d = r->db[i];
		const struct applier *a = &d->applier;
		struct db_status *to = &s->db[i];
		bool live = d->running && a->known && a->mode == APPLIER_LIVE;
		bool linked = d->running && d->link.state == LINK_STREAM;

		snprintf(to->name, sizeof(to->name), "%s", d->feed.name);
		snprintf(to->path, sizeof(to->path), "%s", d->feed.path);
		snprintf(to->state, sizeof(to->state), "%s", state_of(d));
		snprintf(to->detail, sizeof(to->detail), "%s",
			 !d->running	     ? d->detail :
			 a->problem[0]	     ? a->problem :
			 linked		     ? "" :
					       d->link.sentence);
		snprintf(to->source, sizeof(to->source), "%s", r->source_word);
		to->timeline = live ? a->applied.timeline : STATUS_UNKNOWN;
		to->txid = linked ? d->link.source_txid : STATUS_UNKNOWN;
		to->chain = live ? a->applied.chain : STATUS_UNKNOWN;
		to->fingerprint = d->running ? applier_fingerprint(a) : STATUS_UNKNOWN;
		to->wal_bytes = live ? wal_writer_bytes(&a->writer) : STATUS_UNKNOWN;
		to->received = d->running && d->link.known ? d->link.at.txid : STATUS_UNKNOWN;
		to->applied = live ? a->applied.txid : STATUS_UNKNOWN;
		to->durable = live ? a->durable : STATUS_UNKNOWN;
		to->lag_ns = linked && live ? d->link.lag_ns : STATUS_UNKNOWN;
		server_status(&r->server, &d->feed, to);
		for (int c = 0; c < COUNTER_COUNT; c++)
			to->counter[c] = counter_get(d->feed.counters, (enum counter_id)c);
	}
}

static int ring_fd(void *ctx, const char *name)
{
	struct replica *r = ctx;

	for (int i = 0; i < r->count; i++)
		if (!strcmp(r->feeds[i]->name, name) || (!*name && r->count == 1))
			return segment_readonly_fd(&r->feeds[i]->segment);
	return -ENOENT;
}

/* ---- the command ---- */

static int run(struct replica *r)
{
	const struct control_source source = {.fill = fill, .ring_fd = ring_fd, .ctx = r};

	while (!r->node.stop) {
		unsigned int work = node_cycle(&r->node);

		list_when_due(r);
		work += step(r);
		share_cores(r);
		work += loop_reap(&r->node.loop);
		if (control_serve(r->node.control, &source))
			work++;
		if (r->count)
			counter_max(r->feeds[0]->counters, COUNTER_cycle_ns_max,
				    clock_now_ns() - r->node.cycle_begin_ns);
		if (hopeless(r))
			return EXIT_FAILED;
		if (!work && r->mode != PACE_SPIN)
			loop_wait(&r->node.loop, (restless(r) ? TICK_MS : QUIET_MS) * MS);
	}
	return EXIT_OK;
}

static void end(struct replica *r)
{
	uint64_t deadline = clock_now_ns() + 3000 * MS;
	bool all = false;

	while (!all && clock_now_ns() < deadline) {
		all = !r->serving || server_stop(&r->server);
		for (int i = 0; i < r->count; i++) {
			struct replica_db *d = r->db[i];

			if (!d->running)
				continue;
			all = link_stop(&d->link) && all;
			/* What has come whole is applied before we go. */
			applier_do_work(&d->applier);
			all = (applier_idle(&d->applier) || d->applier.problem[0] ||
			       d->applier.mode != APPLIER_LIVE) && all;
		}
		if (!all) {
			loop_wait(&r->node.loop, MS);
			r->node.loop.now_ns = clock_now_ns();
			worker_collect(&r->node.worker);
		}
	}
	worker_close(&r->node.worker);
	if (r->serving)
		server_close(&r->server);
	for (int i = 0; i < r->count; i++)
		if (r->db[i]->running)
			applier_close(&r->db[i]->applier);
}

static int serve(struct replica *r, const char *listen)
{
	char why[512];
	int code = EXIT_FAILED;

	add_known(r);
	if (listen && server_open(&r->server, &r->node.loop, &r->node.worker, r->feeds, r->count,
				  listen, &r->stray, why, sizeof(why))) {
		log_line("%s", why);
		end(r);
		return EXIT_FAILED;
	}
	r->serving = listen != NULL;
	lister_init(&r->lister, &r->source, listed);
	code = run(r);
	end(r);
	return code;
}

static bool check_dir(const char *dir)
{
	struct stat st;

	if (mkdir(dir, 0755) < 0 && errno != EEXIST) {
		log_line("cannot make the directory '%s': %s; choose another", dir, strerror(errno));
		return false;
	}
	if (stat(dir, &st) < 0 || !S_ISDIR(st.st_mode)) {
		log_line("'%s' is not a directory; name the one that the replica is to fill", dir);
		return false;
	}
	if (access(dir, R_OK | W_OK | X_OK) < 0) {
		log_line("cannot write in '%s': %s; choose another directory", dir, strerror(errno));
		return false;
	}
	return true;
}

static bool check_address(const char *word, bool insecure, bool passive, struct address *ret_a)
{
	char why[512];

	if (address_resolve(ret_a, word, passive, why, sizeof(why))) {
		log_line("%s", why);
		return false;
	}
	if (!ret_a->loopback && !insecure) {
		log_line("'%s' is not on this host and the link is not encrypted; give --insecure if "
			 "the network is trusted, or tunnel it",
			 word);
		return false;
	}
	return true;
}

int cmd_replica(int argc, char **argv)
{
	const char *listen = NULL, *state_dir = default_state_dir(), *cpu_word = NULL;
	const char *idle_word = "adaptive";
	uint64_t ring_bytes = RING_BYTES_DEFAULT;
	bool durable = false, insecure = false;
	const struct option_spec options[] = {
		{"listen", OPTION_STRING, &listen, "HOST:PORT",
		 "serve further replicas from here (default: do not)"},
		{"state-dir", OPTION_STRING, &state_dir, "DIR", STATE_DIR_HELP},
		{"cpu", OPTION_STRING, &cpu_word, "N", "pin the working thread to this core"},
		{"idle", OPTION_STRING, &idle_word, "MODE",
		 "spin (a core of its own), adaptive (default) or sleep"},
		{"durable", OPTION_FLAG, &durable, NULL,
		 "sync each commit to disk, several at a time, not only with the\n"
		 "next checkpoint"},
		{"ring-bytes", OPTION_SIZE, &ring_bytes, "SIZE",
		 "memory for commits on their way, each database (default 64M)"},
		{"insecure", OPTION_FLAG, &insecure, NULL,
		 "allow addresses off this host without encryption"},
		{NULL},
	};
	const struct usage usage = {
		.command = "replica",
		.words = "HOST:PORT DIR",
		.about = "Keeps copies of a primary's (or another replica's) databases as DIR/NAME. Any\n"
			 "application may read them; they cannot be written while this runs.",
		.options = options,
	};
	const char *words[2];
	static struct replica r;
	static char dir[PATH_MAX];
	struct address listen_at;
	int64_t cpu;
	int count, code;

	if (!options_parse(&usage, argc, argv, words, 2, &count, &code))
		return code;
	if (pace_parse(idle_word, &r.mode)) {
		log_line("replica: unknown --idle '%s'; it is spin, adaptive or sleep", idle_word);
		return EXIT_USAGE;
	}
	if (!node_check_ring(&ring_bytes) || !node_check_cpu(cpu_word, &cpu))
		return EXIT_USAGE;
	if (!check_address(words[0], insecure, false, &r.source) ||
	    (listen && !check_address(listen, insecure, true, &listen_at)) || !check_dir(words[1]))
		return EXIT_FAILED;
	r.dir = realpath(words[1], dir) ? dir : words[1];
	snprintf(r.source_word, sizeof(r.source_word), "%s", words[0]);
	r.ring_bytes = ring_bytes;
	r.cpu = (int)cpu;
	r.alone = cpu >= 0 || r.mode == PACE_SPIN;
	r.durable = durable;
	r.server.feeds = r.feeds;
	if (!node_open(&r.node, state_dir, cpu))
		return EXIT_FAILED;
	code = serve(&r, listen);
	for (int i = 0; i < r.count; i++) {
		feed_close(&r.db[i]->feed);
		free(r.db[i]);
	}
	node_close(&r.node);
	return code;
}
