/* test_wal_writer - what we write into a WAL, stock SQLite in another process reads.
 *
 * A source database is written by SQLite; its WAL's frames are what the writer is given, and the
 * source's own states are what a reader of the copy must see. */
#include "tests/testing.h"

#include "daemon/wal/wal_writer.h"

struct pair {
	struct cli source, reader;
	struct wal_file wal; /* of the source */
	struct wal_writer w;
	uint32_t done; /* frames of it that were written */
	uint32_t salt[2];
	int lives; /* times about_to() was called */
};

static uint32_t (*sums)[2];

static void about_to(void *ctx, const uint32_t salt[2])
{
	struct pair *p = ctx;

	memcpy(p->salt, salt, sizeof(p->salt));
	p->lives++;
}

static const char *writer_open(struct pair *p, uint32_t page_bytes)
{
	char why[256] = "";

	if (wal_writer_open(&p->w, in_scratch("copy.db"), page_bytes, why, sizeof(why))) {
		fprintf(stderr, "%s\n", why);
		return "wal_writer_open";
	}
	EXPECT(wal_writer_adopt(&p->w, about_to, p) == 0);
	return NULL;
}

/* A source and its copy; the copy's WAL is empty and ours. */
static const char *pair_open(struct pair *p, uint32_t page_bytes)
{
	memset(p, 0, sizeof(*p));
	cli_open(&p->source, in_scratch("source.db"));
	cli_ask(&p->source,
		"PRAGMA page_size=%u; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, "
		"v, w); CREATE INDEX i ON t(v); INSERT INTO t VALUES(1, 1, 'first'); "
		"PRAGMA wal_checkpoint(TRUNCATE);",
		page_bytes);
	EXPECT(shell("cp '%s' '%s'", in_scratch("source.db"), in_scratch("copy.db")) == 0);
	CALL(writer_open(p, page_bytes));
	cli_open(&p->reader, in_scratch("copy.db"));
	return NULL;
}

static void pair_close(struct pair *p)
{
	wal_writer_close(&p->w);
	cli_close(&p->reader);
	cli_close(&p->source);
	wal_file_free(&p->wal);
}

static bool load(struct pair *p)
{
	wal_file_free(&p->wal);
	return wal_file_load(&p->wal, in_scratch("source.db"));
}

/* Append frames first..last of the source's WAL, AT_ONCE at a time. */
static int append(struct pair *p, uint32_t first, uint32_t last)
{
	enum { AT_ONCE = 700 };
	int err = 0;

	while (!err && first <= last) {
		uint32_t n = last - first + 1 < AT_ONCE ? last - first + 1 : AT_ONCE;

		wal_writer_prepare(&p->w, wal_file_frame(&p->wal, first), n, true, sums);
		err = wal_writer_append(&p->w, wal_file_frame(&p->wal, first), n);
		first += n;
	}
	return err;
}

static void publish(struct pair *p, uint32_t source_frame)
{
	wal_writer_publish(&p->w, p->w.appended, wal_file_size(&p->wal, source_frame), p->w.sum);
}

/* Write what the source has committed since, each commit for itself. */
static const char *follow(struct pair *p)
{
	EXPECT(load(p));
	for (uint32_t f = p->done + 1; f <= p->wal.frames; f++) {
		if (!wal_file_size(&p->wal, f))
			continue;
		EXPECT(append(p, p->done + 1, f) == 0);
		publish(p, f);
		p->done = f;
	}
	EXPECT(p->done == p->wal.frames);
	return NULL;
}

static const char DIGEST[] = "SELECT count(*) || '/' || coalesce(sum(v), 0) || '/' || "
			     "coalesce(sum(length(w)), 0) || '/' || coalesce(substr(max(w), -50), 0) FROM t;";

static bool reads_the_same(struct pair *p)
{
	char expected[256];

	snprintf(expected, sizeof(expected), "%s", cli_ask(&p->source, DIGEST));
	return strcmp(cli_ask(&p->reader, DIGEST), expected) == 0;
}

/* Sound, equal to the source for every reader, and equal byte for byte once both are backfilled. */
static const char *equal_in_the_end(struct pair *p)
{
	EXPECT(reads_the_same(p));
	EXPECT(strcmp(cli_ask(&p->reader, "PRAGMA integrity_check;"), "ok") == 0);
	EXPECT(cli_ask(&p->reader, "PRAGMA wal_checkpoint(PASSIVE);")[0] == '0');
	EXPECT(wal_index_backfill(p->w.conn.index) == p->w.header.mx_frame);
	cli_ask(&p->source, "PRAGMA wal_checkpoint(PASSIVE);");
	EXPECT(same_file(in_scratch("source.db"), in_scratch("copy.db")));
	return NULL;
}

static const char *each_page_size(const char *(*test)(uint32_t page_bytes))
{
	static const uint32_t size[] = {512, 4096, 65536};

	for (int i = 0; i < 3; i++) {
		CALL(test(size[i]));
		shell("rm -f '%s'/*", scratch);
	}
	return NULL;
}

static const char *commits(uint32_t page_bytes)
{
	struct pair p;

	CALL(pair_open(&p, page_bytes));
	for (int i = 0; i < 30; i++) {
		cli_ask(&p.source,
			"INSERT INTO t(v, w) VALUES(%u, printf('%%0*d', %u, %d)); "
			"UPDATE t SET v = v + 1 WHERE id %% 3 = %d; DELETE FROM t WHERE v %% 97 = 5;",
			below(1000), 1 + below(3000), i, i % 3);
		CALL(follow(&p));
		EXPECT(reads_the_same(&p));
	}
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

/* Commits are seen one after the other, with pages of every size. */
static const char *test_commits(void)
{
	return each_page_size(commits);
}

/* A database that grows and is vacuumed: its size is the one the commit tells. */
static const char *vacuum(uint32_t page_bytes)
{
	struct pair p;

	CALL(pair_open(&p, page_bytes));
	cli_ask(&p.source, "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<300) "
			   "INSERT INTO t(v, w) SELECT i, printf('%%0500d', i) FROM n;");
	CALL(follow(&p));
	cli_ask(&p.source, "DELETE FROM t WHERE id %% 10; VACUUM;");
	CALL(follow(&p));
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

static const char *test_vacuum(void)
{
	return each_page_size(vacuum);
}

/* Appended frames are nobody's until they are published. */
static const char *test_invisible(void)
{
	char before[256];
	struct pair p;

	CALL(pair_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, 'seven');");
	CALL(follow(&p));
	snprintf(before, sizeof(before), "%s", cli_ask(&p.reader, DIGEST));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(8, 'eight');");
	EXPECT(load(&p));
	EXPECT(append(&p, p.done + 1, p.wal.frames) == 0);
	EXPECT(strcmp(cli_ask(&p.reader, DIGEST), before) == 0);
	publish(&p, p.wal.frames);
	p.done = p.wal.frames;
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

/* A reader's snapshot stays as it is while commits follow. */
static const char *test_snapshot(void)
{
	char before[256];
	struct pair p;

	CALL(pair_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, 'seven');");
	CALL(follow(&p));
	snprintf(before, sizeof(before), "%s", cli_ask(&p.reader, "BEGIN; %s", DIGEST));
	for (int i = 0; i < 10; i++) {
		cli_ask(&p.source, "UPDATE t SET v = v + 1; INSERT INTO t(v, w) VALUES(1, 2);");
		CALL(follow(&p));
		EXPECT(strcmp(cli_ask(&p.reader, DIGEST), before) == 0);
	}
	cli_ask(&p.reader, "COMMIT;");
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

/* What was rolled back leaves nothing: other frames take its place, in file and hash tables. */
static const char *rollback(uint32_t page_bytes)
{
	struct pair p;

	CALL(pair_open(&p, page_bytes));
	for (int i = 0; i < 12; i++) {
		uint32_t frames;

		cli_ask(&p.source,
			"INSERT INTO t(v, w) VALUES(%d, printf('%%0*d', %u, %d)); "
			"UPDATE t SET v = v + %d;",
			i, 1 + below(2000), i, i);
		EXPECT(load(&p));
		/* A part of it, frames of other pages, or frames out of order; then the right ones. */
		frames = p.wal.frames - p.done;
		if (i % 3 == 0) {
			EXPECT(append(&p, p.done + 1, p.done + 1 + below(frames)) == 0);
		} else if (i % 3 == 1) {
			EXPECT(append(&p, 1, p.wal.frames) == 0);
		} else {
			for (uint32_t f = p.wal.frames; f > p.done; f--)
				EXPECT(append(&p, f, f) == 0);
		}
		wal_writer_rollback(&p.w);
		EXPECT(p.w.appended == p.w.header.mx_frame);
		CALL(follow(&p));
		EXPECT(reads_the_same(&p));
		EXPECT(strcmp(cli_ask(&p.reader, "PRAGMA integrity_check;"), "ok") == 0);
	}
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

static const char *test_rollback(void)
{
	return each_page_size(rollback);
}

/* The first commit of a life can be rolled back as well: its checksum begins at the header. */
static const char *test_rollback_first(void)
{
	struct pair p;

	CALL(pair_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, 'seven');");
	EXPECT(load(&p));
	EXPECT(append(&p, 1, p.wal.frames) == 0);
	wal_writer_rollback(&p.w);
	CALL(follow(&p));
	/* Killed now, whoever opens it next recovers it by its checksums. */
	wal_writer_close(&p.w);
	cli_end(&p.reader, true);
	EXPECT(shell("rm '%s-shm'", in_scratch("copy.db")) == 0);
	cli_open(&p.reader, in_scratch("copy.db"));
	EXPECT(reads_the_same(&p));
	pair_close(&p);
	return NULL;
}

/* Another process recovers from the file alone what we published: checksums and salts are right. */
static const char *recovered(uint32_t page_bytes)
{
	struct pair p;

	CALL(pair_open(&p, page_bytes));
	for (int life = 0; life < 3; life++) {
		for (int i = 0; i < 5; i++) {
			cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(%d, hex(randomblob(500)));", i);
			CALL(follow(&p));
		}
		wal_writer_close(&p.w);
		cli_end(&p.reader, true);
		EXPECT(shell("rm '%s-shm'", in_scratch("copy.db")) == 0);
		cli_open(&p.reader, in_scratch("copy.db"));
		EXPECT(reads_the_same(&p));
		EXPECT(strcmp(cli_ask(&p.reader, "PRAGMA integrity_check;"), "ok") == 0);
		CALL(writer_open(&p, page_bytes));
		EXPECT(p.w.header.mx_frame > 0);
		cli_ask(&p.reader, "PRAGMA wal_checkpoint(PASSIVE);");
		EXPECT(wal_writer_restart(&p.w, about_to, &p) == 1);
	}
	pair_close(&p);
	return NULL;
}

static const char *test_recovered(void)
{
	return each_page_size(recovered);
}

/* Begin anew only when all is backfilled and no reader needs the old frames. */
static const char *test_restart(void)
{
	struct wal_index_header before;
	struct pair p;

	CALL(pair_open(&p, 4096));
	EXPECT(p.lives == 1); /* the empty WAL got its header */
	EXPECT(wal_writer_restart(&p.w, about_to, &p) == 0);
	for (int i = 0; i < 4; i++) {
		cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, hex(randomblob(3000)));");
		CALL(follow(&p));
		EXPECT(wal_writer_restart(&p.w, about_to, &p) == 0);
		cli_ask(&p.reader, "PRAGMA wal_checkpoint(PASSIVE); BEGIN; SELECT 1 FROM t;");
		if (i % 2) { /* a reader of the database file alone is not in the way */
			EXPECT(p.lives == 1 + i / 2);
			before = p.w.header;
			EXPECT(wal_writer_restart(&p.w, about_to, &p) == 1);
			EXPECT(p.lives == 2 + i / 2 && !memcmp(p.salt, p.w.header.salt, 8));
			EXPECT(memcmp(p.salt, before.salt, 8));
			EXPECT(p.w.header.mx_frame == 0 && p.w.appended == 0);
			EXPECT(be32toh(p.salt[0]) == be32toh(before.salt[0]) + 1);
		}
		cli_ask(&p.reader, "COMMIT;");
		EXPECT(reads_the_same(&p));
	}
	/* A reader of frames is: */
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, 'x');");
	CALL(follow(&p));
	cli_ask(&p.reader, "BEGIN; SELECT 1 FROM t;");
	cli_ask(&p.source, "PRAGMA user_version=3;");
	struct cli other;

	cli_open(&other, in_scratch("copy.db"));
	cli_ask(&other, "PRAGMA wal_checkpoint(PASSIVE);");
	EXPECT(wal_index_backfill(p.w.conn.index) == p.w.header.mx_frame);
	EXPECT(wal_writer_restart(&p.w, about_to, &p) == 0);
	cli_ask(&p.reader, "COMMIT;");
	EXPECT(wal_writer_restart(&p.w, about_to, &p) == 1);
	CALL(follow(&p));
	cli_close(&other);
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

/* A part of a commit in the file forbids the restart: it would be forgotten. */
static const char *test_restart_parts(void)
{
	struct pair p;

	CALL(pair_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, 'x');");
	CALL(follow(&p));
	cli_ask(&p.reader, "PRAGMA wal_checkpoint(PASSIVE);");
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, hex(randomblob(9000)));");
	EXPECT(load(&p));
	EXPECT(append(&p, p.done + 1, p.done + 2) == 0);
	EXPECT(wal_writer_restart(&p.w, about_to, &p) == 0);
	EXPECT(append(&p, p.done + 3, p.wal.frames) == 0);
	publish(&p, p.wal.frames);
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

/* Nobody else can write or restart the WAL; everybody can read and checkpoint. */
static const char *test_read_only(void)
{
	static const char *const statement[] = {
		"INSERT INTO t(v, w) VALUES(7, 'x');", "BEGIN IMMEDIATE;", "CREATE TABLE u(a);",
		"DELETE FROM t;", "PRAGMA user_version=4;", "VACUUM;", "PRAGMA journal_mode=DELETE;"};
	struct pair p;

	CALL(pair_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, 'x');");
	CALL(follow(&p));
	for (size_t i = 0; i < sizeof(statement) / sizeof(*statement); i++) {
		const char *said = cli_ask(&p.reader, "%s", statement[i]);

		if (!strstr(said, "locked"))
			fprintf(stderr, "%s said '%s'\n", statement[i], said);
		EXPECT(strstr(said, "locked"));
		cli_ask(&p.reader, "ROLLBACK;");
	}
	EXPECT(cli_ask(&p.reader, "PRAGMA wal_checkpoint(TRUNCATE);")[0] == '1');
	EXPECT(cli_ask(&p.reader, "PRAGMA wal_checkpoint(PASSIVE);")[0] == '0');
	CALL(equal_in_the_end(&p));
	/* Closed, it is an ordinary database again. */
	wal_writer_close(&p.w);
	EXPECT(strcmp(cli_ask(&p.reader, "INSERT INTO t(v, w) VALUES(7, 'x');"), "") == 0);
	pair_close(&p);
	return NULL;
}

/* Another program's write is waited for; then we go on from what it left. */
static const char *test_waits(void)
{
	struct pair p;

	CALL(pair_open(&p, 4096));
	wal_writer_close(&p.w);
	EXPECT(strcmp(cli_ask(&p.reader, "BEGIN; INSERT INTO t(v, w) VALUES(100, 'local');"), "") == 0);
	cli_tell(&p.reader, ".shell sleep 0.2\nCOMMIT;");
	CALL(writer_open(&p, 4096));
	EXPECT(strcmp(cli_answer(&p.reader), "") == 0);
	EXPECT(p.w.header.mx_frame > 0);
	EXPECT(cli_number(&p.reader, "SELECT count(*) FROM t WHERE w = 'local';") == 1);
	pair_close(&p);
	return NULL;
}

/* What a crashed writer left behind mxFrame is met again: no stale entry misleads a reader. */
static const char *crashed(uint32_t page_bytes)
{
	struct pair p;

	CALL(pair_open(&p, page_bytes));
	for (int i = 0; i < 10; i++) {
		cli_ask(&p.source,
			"INSERT INTO t(v, w) VALUES(%d, printf('%%0*d', %u, %d)); "
			"UPDATE t SET v = v + %d;",
			i, 1 + below(5000), i, i);
		EXPECT(load(&p));
		/* Frames of old states, appended by someone who then died. */
		EXPECT(append(&p, 1, 1 + below(p.wal.frames)) == 0);
		wal_writer_close(&p.w);
		CALL(writer_open(&p, page_bytes));
		EXPECT(p.w.appended == p.w.header.mx_frame);
		CALL(follow(&p));
		EXPECT(reads_the_same(&p));
		EXPECT(strcmp(cli_ask(&p.reader, "PRAGMA integrity_check;"), "ok") == 0);
	}
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

static const char *test_crashed(void)
{
	return each_page_size(crashed);
}

/* Every frame can be found: entry, page number and a chain of the hash table that leads to it. */
static const char *tables_are_whole(struct pair *p)
{
	for (uint32_t f = 1; f <= p->w.header.mx_frame; f++) {
		uint32_t r = wal_index_region(f), entry = f - wal_index_zero(r), pgno, k;
		volatile void *at = conn_region(&p->w.conn, r, false);
		bool found = false;

		EXPECT(at);
		pgno = atomic_load(&wal_index_pgnos(at, r)[entry - 1]);
		EXPECT(pgno > 0);
		for (k = wal_index_hash(pgno); !found && atomic_load(&wal_index_hashes(at)[k]);
		     k = (k + 1) & (WAL_INDEX_HASH_SLOTS - 1))
			found = atomic_load(&wal_index_hashes(at)[k]) == entry;
		EXPECT(found);
	}
	return NULL;
}

/* More frames than one and than two regions of the index hold, in commits small and large, with
 * rollbacks across the boundary between regions. */
static const char *test_regions(void)
{
	struct pair p;

	CALL(pair_open(&p, 512));
	for (int i = 0; i < 16; i++) {
		cli_ask(&p.source,
			"WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<300) "
			"INSERT INTO t(v, w) SELECT i + %d, printf('%%0*d', %u, i) FROM n;",
			i, 700 + below(500));
		EXPECT(load(&p));
		EXPECT(append(&p, 1, p.wal.frames - p.done) == 0);
		wal_writer_rollback(&p.w);
		CALL(follow(&p));
		EXPECT(reads_the_same(&p));
	}
	for (int i = 0; i < 10; i++) {
		cli_ask(&p.source, "UPDATE t SET v = v + 1 WHERE id = %u;", 1 + below(4000));
		CALL(follow(&p));
	}
	EXPECT(p.w.header.mx_frame > 8158);
	CALL(tables_are_whole(&p));
	CALL(equal_in_the_end(&p));
	/* And the same places once more, in a new life. */
	EXPECT(wal_writer_restart(&p.w, about_to, &p) == 1);
	p.done = 0; /* the source's begins anew as well */
	cli_ask(&p.source, "UPDATE t SET w = w || 'y';");
	CALL(follow(&p));
	EXPECT(p.w.header.mx_frame > 4062);
	CALL(tables_are_whole(&p));
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

/* Boundaries of a region, frame by frame: the last entry, the first of the next, and back. */
static const char *test_region_boundary(void)
{
	struct pair p;

	CALL(pair_open(&p, 512));
	cli_ask(&p.source, "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<3000) "
			   "INSERT INTO t(v, w) SELECT i, printf('%%0800d', i) FROM n;");
	cli_ask(&p.source, "UPDATE t SET v = v + 1;");
	EXPECT(load(&p));
	for (uint32_t edge = 4062; edge <= 4062 + 4096; edge += 4096) {
		EXPECT(p.wal.frames > edge + 3);
		if (p.w.appended < edge - 2)
			EXPECT(append(&p, p.w.appended + 1, edge - 2) == 0);
		/* A commit that ends before, at, and after the boundary, each rolled back first. */
		for (uint32_t f = edge - 1; f <= edge + 2; f++) {
			EXPECT(append(&p, p.w.appended + 1, edge + 3) == 0);
			wal_writer_rollback(&p.w);
			EXPECT(p.w.appended == p.w.header.mx_frame);
			EXPECT(append(&p, p.w.appended + 1, f) == 0);
			wal_writer_publish(&p.w, f, 5000, p.w.sum);
			CALL(tables_are_whole(&p));
		}
	}
	pair_close(&p);
	return NULL;
}

/* Killed between the new header in the file and its publication, while a reader keeps the index:
 * the WAL still says the old life, all of it backfilled. It goes on. */
static const char *test_restart_killed(void)
{
	struct wal_header h;
	uint8_t bytes[WAL_HEADER_BYTES];
	struct pair p;
	char why[256];

	CALL(pair_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, 'x');");
	CALL(follow(&p));
	cli_ask(&p.reader, "PRAGMA wal_checkpoint(PASSIVE); SELECT 1 FROM t;");
	EXPECT(pread(p.w.wal_fd, bytes, sizeof(bytes), 0) == sizeof(bytes));
	EXPECT(wal_header_get(bytes, &h) == 0);
	h.sequence++;
	h.salt[0] = htobe32(be32toh(h.salt[0]) + 1);
	h.salt[1] ^= 0x12345678;
	wal_header_put(bytes, &h);
	EXPECT(pwrite(p.w.wal_fd, bytes, sizeof(bytes), 0) == sizeof(bytes));
	wal_writer_close(&p.w);

	EXPECT(wal_writer_open(&p.w, in_scratch("copy.db"), 4096, why, sizeof(why)) == 0);
	int err = wal_writer_adopt(&p.w, about_to, &p);

	if (err) {
		pair_close(&p);
		return "wal_writer_adopt() cannot go on from a header in the file that is newer than "
		       "the published one, though all is backfilled";
	}
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(8, 'y');");
	CALL(follow(&p));
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

/* A torn wal-index header, as a writer leaves it that died in the middle of publishing. */
static const char *test_torn(void)
{
	struct pair p;

	CALL(pair_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, 'x');");
	CALL(follow(&p));
	/* The second copy is of the next state, the first still of this one. */
	atomic_fetch_add(wal_index_word(p.w.conn.index, WAL_INDEX_HEADER_BYTES + 8), 1);
	wal_writer_close(&p.w);
	CALL(writer_open(&p, 4096));
	EXPECT(reads_the_same(&p));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(8, 'y');");
	CALL(follow(&p));
	CALL(equal_in_the_end(&p));
	pair_close(&p);
	return NULL;
}

/* The frame appended last, with its page number. */
static const char *test_last(void)
{
	static uint8_t frame[WAL_FRAME_HEADER + 4096];
	struct pair p;

	CALL(pair_open(&p, 4096));
	cli_ask(&p.source, "INSERT INTO t(v, w) VALUES(7, hex(randomblob(9000)));");
	EXPECT(load(&p));
	for (uint32_t f = 1; f <= p.wal.frames; f++) {
		EXPECT(append(&p, f, f) == 0);
		EXPECT(wal_writer_last(&p.w, frame) == 0);
		EXPECT(!memcmp(frame, wal_file_frame(&p.wal, f), 4));
		EXPECT(!memcmp(frame + 24, wal_file_frame(&p.wal, f) + 24, 4096));
	}
	EXPECT(wal_writer_bytes(&p.w) == 32 + (uint64_t)p.wal.frames * (24 + 4096));
	pair_close(&p);
	return NULL;
}

int main(void)
{
	sums = malloc(WAL_WRITER_FRAMES * sizeof(*sums));
	run("wal_writer_commits", test_commits);
	run("wal_writer_vacuum", test_vacuum);
	run("wal_writer_invisible", test_invisible);
	run("wal_writer_snapshot", test_snapshot);
	run("wal_writer_rollback", test_rollback);
	run("wal_writer_rollback_first", test_rollback_first);
	run("wal_writer_recovered", test_recovered);
	run("wal_writer_restart", test_restart);
	run("wal_writer_restart_parts", test_restart_parts);
	run("wal_writer_read_only", test_read_only);
	run("wal_writer_waits", test_waits);
	run("wal_writer_crashed", test_crashed);
	run("wal_writer_regions", test_regions);
	run("wal_writer_region_boundary", test_region_boundary);
	run("wal_writer_torn", test_torn);
	run("wal_writer_last", test_last);
	run("wal_writer_restart_killed", test_restart_killed);
	free(sums);
	return failed;
}
