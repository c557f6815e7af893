/* test_positions - a state of the WAL is found by what it looks like, if it was noted. */
#include "tests/testing.h"

#include "daemon/apply/positions.h"

static struct wal_index_header header(const uint32_t salt[2], uint32_t mx_frame, const uint32_t sum[2])
{
	struct wal_index_header h = {.mx_frame = mx_frame};

	memcpy(h.salt, salt, 8);
	memcpy(h.frame_checksum, sum, 8);
	return h;
}

static const uint32_t none[2], salt[2] = {11, 22};

/* State number i of a life: frames, checksum and position are its own. */
static void note(struct positions *p, uint32_t i)
{
	uint32_t sum[2] = {i * 7, i * 13};

	positions_note(p, (struct position){1, 1000 + i, i * 31}, salt, i, sum);
}

static bool finds(const struct positions *p, uint32_t i)
{
	uint32_t sum[2] = {i * 7, i * 13};
	struct wal_index_header h = header(salt, i, sum);
	struct position at;

	return positions_find(p, &h, &at) == 0 && at.txid == 1000 + i && at.chain == i * 31 &&
	       at.timeline == 1;
}

/* What was noted is found, with the right checksum only, also after the file was closed. */
static const char *test_find(void)
{
	uint32_t wrong[2] = {1, 2}, other[2] = {11, 23};
	struct positions p;
	struct position at = {9, 9, 9};
	struct wal_index_header h;

	EXPECT(positions_open(&p, in_scratch("positions")) == 0);
	EXPECT(positions_last(&p, &at) == -ENOENT && !finds(&p, 5));
	for (uint32_t i = 1; i <= 100; i++) {
		note(&p, i);
		EXPECT(positions_last(&p, &at) == 0 && at.txid == 1000 + i);
	}
	EXPECT(positions_sync(&p) == 0);
	for (int again = 0; again < 2; again++) {
		for (uint32_t i = 1; i <= 100; i++)
			EXPECT(finds(&p, i));
		EXPECT(!finds(&p, 101));
		h = header(salt, 50, wrong);
		EXPECT(positions_find(&p, &h, &at) == -ENOENT);
		h = header(other, 50, (uint32_t[2]){350, 650});
		EXPECT(positions_find(&p, &h, &at) == -ENOENT);
		positions_close(&p);
		EXPECT(positions_open(&p, in_scratch("positions")) == 0);
		EXPECT(positions_last(&p, &at) == 0 && at.txid == 1100);
	}
	positions_close(&p);
	return NULL;
}

/* Without a frame there is no checksum: the salts alone name the state. */
static const char *test_empty_life(void)
{
	struct positions p;
	struct position at;
	struct wal_index_header h = header(salt, 0, (uint32_t[2]){123, 456});

	EXPECT(positions_open(&p, in_scratch("positions")) == 0);
	positions_note(&p, (struct position){1, 77, 5}, salt, 0, none);
	EXPECT(positions_find(&p, &h, &at) == 0 && at.txid == 77);
	h.salt[1]++;
	EXPECT(positions_find(&p, &h, &at) == -ENOENT);
	positions_close(&p);
	return NULL;
}

/* The newest note of a state counts: a commit that was applied again under another position. */
static const char *test_newest(void)
{
	struct positions p;
	struct position at;
	uint32_t sum[2] = {5, 6};
	struct wal_index_header h = header(salt, 9, sum);

	EXPECT(positions_open(&p, in_scratch("positions")) == 0);
	for (uint64_t i = 1; i <= 3; i++)
		positions_note(&p, (struct position){1, i, i}, salt, 9, sum);
	EXPECT(positions_find(&p, &h, &at) == 0 && at.txid == 3);
	positions_close(&p);
	return NULL;
}

/* Round and round: the last POSITIONS are there, older ones are not. */
static const char *test_round(void)
{
	uint32_t n = 2 * POSITIONS + 100;
	struct positions p;

	EXPECT(positions_open(&p, in_scratch("positions")) == 0);
	for (uint32_t i = 1; i <= n; i++)
		note(&p, i);
	for (uint32_t i = n - POSITIONS + 1; i <= n; i += 97)
		EXPECT(finds(&p, i));
	EXPECT(finds(&p, n) && finds(&p, n - POSITIONS + 1) && !finds(&p, n - POSITIONS));
	positions_close(&p);
	return NULL;
}

/* A damaged entry is none; those around it stay. */
static const char *test_flipped(void)
{
	struct positions p;

	EXPECT(positions_open(&p, in_scratch("positions")) == 0);
	for (uint32_t i = 1; i <= 3; i++)
		note(&p, i);
	for (uint32_t bit = 0; bit < 64 * 8; bit++) {
		p.at[2 * 64 + bit / 8] ^= (uint8_t)(1u << bit % 8);
		EXPECT(finds(&p, 1) && !finds(&p, 2) && finds(&p, 3));
		p.at[2 * 64 + bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	EXPECT(finds(&p, 2));
	positions_clear(&p);
	EXPECT(!finds(&p, 1) && !finds(&p, 2) && !finds(&p, 3));
	positions_close(&p);
	return NULL;
}

/* A file of another size is not touched. */
static const char *test_refused(void)
{
	struct positions p;

	shell("echo rubbish > '%s'", in_scratch("positions"));
	EXPECT(positions_open(&p, in_scratch("positions")) == -EPROTO);
	EXPECT(shell("grep -q rubbish '%s'", in_scratch("positions")) == 0);
	EXPECT(positions_open(&p, in_scratch("no/where")) == -ENOENT);
	return NULL;
}

int main(void)
{
	run("positions_find", test_find);
	run("positions_empty_life", test_empty_life);
	run("positions_newest", test_newest);
	run("positions_round", test_round);
	run("positions_flipped", test_flipped);
	run("positions_refused", test_refused);
	return failed;
}
