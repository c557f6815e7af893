/* test_message - hello, answer and ack: what is put is got, and nothing else is. */
#include "tests/testing.h"

#include "daemon/wire/message.h"

static struct hello a_hello(void)
{
	struct hello h = {.version = WIRE_VERSION, .what = HELLO_FOLLOW, .page_bytes = 4096,
			  .names = 3, .at = {7, rnd(), rnd()}};

	rnd_fill(h.db_id, sizeof(h.db_id));
	strcpy(h.text, "my app \xc3\xa4.db");
	return h;
}

/* Every field comes back. */
static const char *test_hello(void)
{
	uint8_t bytes[HELLO_BYTES];

	for (int i = 0; i < 100; i++) {
		struct hello h = a_hello(), back;

		h.what = (uint16_t)(1 + i % 5);
		h.page_bytes = i % 9 ? 256u << i % 9 : 0;
		memset(h.text, 'x', (size_t)i);
		h.text[i] = 0;
		hello_put(bytes, &h);
		EXPECT(hello_get(bytes, &back) == 0);
		EXPECT(back.version == h.version && back.what == h.what && back.names == h.names &&
		       back.page_bytes == h.page_bytes && back.at.timeline == h.at.timeline &&
		       back.at.txid == h.at.txid && back.at.chain == h.at.chain);
		EXPECT(!memcmp(back.db_id, h.db_id, 16) && !strcmp(back.text, h.text));
	}
	return NULL;
}

/* The layout is that of the header's table: a stranger could read it. */
static const char *test_layout(void)
{
	uint8_t bytes[HELLO_BYTES], ack[ACK_BYTES];
	struct hello h = {.version = 1, .what = 2, .page_bytes = 0x01020304, .names = 5,
			  .at = {0x0a0b0c0d, 0x1112131415161718, 0x2122232425262728}, .text = "name"};
	struct ack a = {1, 2, 3, 4};

	hello_put(bytes, &h);
	EXPECT(!memcmp(bytes, "walwire\n\1\0\2\0\4\3\2\1\x0d\x0c\x0b\x0a\5\0\0\0", 24));
	EXPECT(!memcmp(bytes + 24, "\x18\x17\x16\x15\x14\x13\x12\x11\x28\x27\x26\x25\x24\x23\x22\x21",
		       16));
	EXPECT(!memcmp(bytes + 56, "name\0\0", 6));
	for (int i = 312; i < 336; i++)
		EXPECT(bytes[i] == 0);
	ack_put(ack, &a);
	EXPECT(!memcmp(ack, "WACK\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0\4\0", 34));
	return NULL;
}

/* A message with any bit flipped is not taken. */
static const char *test_flipped(void)
{
	uint8_t bytes[HELLO_BYTES], ack[ACK_BYTES];
	struct hello h = a_hello(), back;
	struct ack a = {rnd(), rnd(), rnd(), rnd()}, a_back;

	hello_put(bytes, &h);
	for (uint32_t bit = 0; bit < 8 * HELLO_BYTES; bit++) {
		int err;

		bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
		memset(&back, 0x55, sizeof(back));
		err = hello_get(bytes, &back);
		EXPECT(err == (bit / 8 == 8 || bit / 8 == 9 ? -EPROTONOSUPPORT : -EPROTO));
		EXPECT(back.at.txid == 0x5555555555555555); /* untouched */
		bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	ack_put(ack, &a);
	EXPECT(ack_get(ack, &a_back) == 0 && !memcmp(&a, &a_back, sizeof(a)));
	for (uint32_t bit = 0; bit < 8 * ACK_BYTES; bit++) {
		ack[bit / 8] ^= (uint8_t)(1u << bit % 8);
		EXPECT(ack_get(ack, &a_back) == -EPROTO);
		ack[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	return NULL;
}

/* Well-formed and out of bounds: a page size that is none, too many names, a text without an end. */
static const char *test_bounds(void)
{
	static const uint32_t bad_page[] = {1, 256, 511, 513, 4095, 65535, 131072, 0x80000000};
	uint8_t bytes[HELLO_BYTES];
	struct hello h, back;

	for (size_t i = 0; i < sizeof(bad_page) / sizeof(*bad_page); i++) {
		h = a_hello();
		h.page_bytes = bad_page[i];
		hello_put(bytes, &h);
		EXPECT(hello_get(bytes, &back) == -EPROTO);
	}
	h = a_hello();
	h.names = DATABASES_MAX;
	hello_put(bytes, &h);
	EXPECT(hello_get(bytes, &back) == 0);
	h.names++;
	hello_put(bytes, &h);
	EXPECT(hello_get(bytes, &back) == -EPROTO);
	memset(h.text, 'x', sizeof(h.text)); /* what does not fit is cut, not run over */
	h.names = 0;
	hello_put(bytes, &h);
	EXPECT(hello_get(bytes, &back) == 0 && strlen(back.text) == WIRE_NAME_BYTES - 1);
	return NULL;
}

/* Another version says which. */
static const char *test_version(void)
{
	uint8_t bytes[HELLO_BYTES];
	struct hello h = a_hello(), back = {0};

	h.version = WIRE_VERSION + 5;
	hello_put(bytes, &h);
	EXPECT(hello_get(bytes, &back) == -EPROTONOSUPPORT && back.version == WIRE_VERSION + 5);
	return NULL;
}

/* A name is a file's base name: nothing that leads out of a directory or hides in it. */
static const char *test_names(void)
{
	static const char *const bad[] = {"", ".", "..", ".hidden", "a/b", "/", "../a", "a\nb",
					  "a\x1b[2J", "a\x7f", "\x01"};
	static const char *const good[] = {"a", "app.db", "a b", "\xc3\xa4.db", "-", "a..b", "~", "a\\b"};
	char name[DB_NAME_MAX + 1];

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		EXPECT(!name_is_plain(bad[i]));
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
		EXPECT(name_is_plain(good[i]));
	memset(name, 'x', sizeof(name));
	name[DB_NAME_MAX - 9] = 0; /* room for "-wal" and the like */
	EXPECT(name_is_plain(name));
	name[DB_NAME_MAX - 9] = 'x';
	name[DB_NAME_MAX - 8] = 0;
	EXPECT(!name_is_plain(name));
	name[DB_NAME_MAX - 8] = 'x';
	name[DB_NAME_MAX] = 0;
	EXPECT(!name_is_plain(name));
	return NULL;
}

int main(void)
{
	run("message_hello", test_hello);
	run("message_layout", test_layout);
	run("message_flipped", test_flipped);
	run("message_bounds", test_bounds);
	run("message_version", test_version);
	run("message_names", test_names);
	return failed;
}
