/* test_slots - the newest whole record, whatever moment the writer was killed at. */
#include "tests/testing.h"

#include <sys/mman.h>

#include "daemon/base/slots.h"

struct record {
	uint64_t number, text[9];
};

static const uint8_t none[16];

static struct record a_record(uint64_t n)
{
	struct record r = {.number = n};

	for (int i = 0; i < 9; i++)
		r.text[i] = n * 1000 + (uint64_t)i;
	return r;
}

static int reopen(struct slots *s, uint8_t id[16])
{
	slots_close(s);
	return slots_open(s, in_scratch("slots"), sizeof(struct record), id);
}

/* Empty at first; then the last record that was written, also after it was closed. */
static const char *test_records(void)
{
	uint8_t id[16] = {0}, again[16] = {0};
	struct record r;
	struct slots s;

	EXPECT(slots_open(&s, in_scratch("slots"), sizeof(r), id) == 0);
	EXPECT(s.fresh && memcmp(id, none, 16) && slots_read(&s, &r) == -ENOENT);
	EXPECT(reopen(&s, again) == 0 && s.fresh && !memcmp(id, again, 16));
	for (uint64_t n = 1; n < 20; n++) {
		struct record expected = a_record(n);

		slots_write(&s, &expected);
		EXPECT(!s.fresh && slots_read(&s, &r) == 0 && !memcmp(&r, &expected, sizeof(r)));
		if (n % 3 == 0)
			EXPECT(reopen(&s, again) == 0 && !s.fresh && !memcmp(id, again, 16));
		EXPECT(slots_read(&s, &r) == 0 && !memcmp(&r, &expected, sizeof(r)));
	}
	EXPECT(slots_sync(&s) == 0);
	slots_close(&s);
	return NULL;
}

/* An identity that is given stays. */
static const char *test_identity(void)
{
	uint8_t id[16] = "given to it", again[16] = "another one";
	struct slots s;

	EXPECT(slots_open(&s, in_scratch("slots"), sizeof(struct record), id) == 0);
	EXPECT(reopen(&s, again) == 0 && !memcmp(again, id, 16));
	slots_close(&s);
	return NULL;
}

/* Killed after any byte of a write: the record before it, or, once all is there, the new one. */
static const char *test_killed(void)
{
	static uint8_t before[4096], after[4096], mixed[4096];
	struct record old = a_record(7), new = a_record(8), r;
	uint8_t id[16] = {0};
	struct slots s;
	int news = 0;

	EXPECT(slots_open(&s, in_scratch("slots"), sizeof(r), id) == 0);
	for (uint64_t n = 1; n <= 7; n++) {
		struct record x = a_record(n);

		slots_write(&s, &x);
	}
	memcpy(before, s.at, sizeof(before));
	slots_write(&s, &new);
	memcpy(after, s.at, sizeof(after));
	for (size_t cut = 0; cut <= sizeof(after); cut++) {
		memcpy(mixed, after, cut);
		memcpy(mixed + cut, before + cut, sizeof(mixed) - cut);
		memcpy(s.at, mixed, sizeof(mixed));
		EXPECT(reopen(&s, id) == 0);
		EXPECT(slots_read(&s, &r) == 0);
		EXPECT(!memcmp(&r, &old, sizeof(r)) || !memcmp(&r, &new, sizeof(r)));
		news += r.number == 8;
		EXPECT(!news || r.number == 8);
		/* And it goes on from there. */
		struct record next = a_record(100 + cut);

		slots_write(&s, &next);
		EXPECT(slots_read(&s, &r) == 0 && r.number == 100 + cut);
		EXPECT(reopen(&s, id) == 0 && slots_read(&s, &r) == 0 && r.number == 100 + cut);
	}
	EXPECT(news > 0);
	slots_close(&s);
	return NULL;
}

/* Any flipped bit of the newer slot: the older one counts. */
static const char *test_flipped(void)
{
	uint8_t id[16] = {0};
	struct record r;
	struct slots s;
	size_t begin;

	EXPECT(slots_open(&s, in_scratch("slots"), sizeof(r), id) == 0);
	for (uint64_t n = 1; n <= 8; n++) {
		struct record x = a_record(n);

		slots_write(&s, &x);
	}
	begin = 64 + (s.sequence & 1) * (16 + SLOTS_RECORD_MAX);
	for (size_t bit = 0; bit < 8 * (16 + sizeof(r)); bit++) {
		s.at[begin + bit / 8] ^= (uint8_t)(1u << bit % 8);
		EXPECT(reopen(&s, id) == 0 && slots_read(&s, &r) == 0 && r.number == 7);
		s.at[begin + bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	EXPECT(reopen(&s, id) == 0 && slots_read(&s, &r) == 0 && r.number == 8);
	slots_close(&s);
	return NULL;
}

/* Other files: another record size, rubbish, too short, a directory. */
static const char *test_refused(void)
{
	uint8_t id[16] = {0};
	struct slots s;

	EXPECT(slots_open(&s, in_scratch("slots"), sizeof(struct record), id) == 0);
	slots_close(&s);
	EXPECT(slots_open(&s, in_scratch("slots"), sizeof(struct record) + 8, id) == -EPROTO);
	shell("echo rubbish > '%s'", in_scratch("rubbish"));
	EXPECT(slots_open(&s, in_scratch("rubbish"), sizeof(struct record), id) == -EPROTO);
	shell("head -c 4096 /dev/urandom > '%s'", in_scratch("random"));
	EXPECT(slots_open(&s, in_scratch("random"), sizeof(struct record), id) == -EPROTO);
	EXPECT(slots_open(&s, scratch, sizeof(struct record), id) == -EISDIR);
	EXPECT(slots_open(&s, in_scratch("no/where"), sizeof(struct record), id) == -ENOENT);
	return NULL;
}

int main(void)
{
	run("slots_records", test_records);
	run("slots_identity", test_identity);
	run("slots_killed", test_killed);
	run("slots_flipped", test_flipped);
	run("slots_refused", test_refused);
	return failed;
}
