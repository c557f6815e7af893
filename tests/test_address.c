/* test_address - HOST:PORT, and what counts as this host. */
#include "tests/testing.h"

#include <netinet/in.h>

#include "daemon/wire/address.h"

static char why[512];

/* What is an address, what it prints as, and whether it is this host's. */
static const char *test_good(void)
{
	static const struct {
		const char *word, *print;
		bool loopback;
	} good[] = {
		{"127.0.0.1:7077", "127.0.0.1:7077", true},
		{"127.9.8.7:1", "127.9.8.7:1", true},
		{"10.0.0.1:65535", "10.0.0.1:65535", false},
		{"0.0.0.0:80", "0.0.0.0:80", false},
		{"[::1]:7077", "[::1]:7077", true},
		{"[::]:7077", "[::]:7077", false},
		{"[2001:db8::5]:9", "[2001:db8::5]:9", false},
	};

	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		struct address a;
		char text[80];

		EXPECT(address_resolve(&a, good[i].word, i % 2, why, sizeof(why)) == 0);
		address_print(&a.sa, text, sizeof(text));
		EXPECT(!strcmp(text, good[i].print) && a.loopback == good[i].loopback);
		EXPECT(a.bytes == (good[i].word[0] == '[' ? sizeof(struct sockaddr_in6) :
							    sizeof(struct sockaddr_in)));
	}
	return NULL;
}

/* What is none says how one is written, and names the word. */
static const char *test_malformed(void)
{
	static const char *const bad[] = {"", ":", "7077", "localhost", ":7077", "localhost:",
					  "localhost:0", "localhost:65536", "localhost:99999999999999999999",
					  "localhost:-1", "localhost:+1", "localhost: 1", "localhost:1x",
					  "localhost:0x10", "::1:7077", "[]:7077", "1:2:3"};
	char longer[400];

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct address a;

		why[0] = 0;
		if (address_resolve(&a, bad[i], false, why, sizeof(why)) != -EINVAL)
			fprintf(stderr, "'%s'\n", bad[i]);
		EXPECT(address_resolve(&a, bad[i], false, why, sizeof(why)) == -EINVAL);
		EXPECT(strstr(why, "HOST:PORT") && strstr(why, bad[i]));
	}
	memset(longer, 'x', sizeof(longer));
	strcpy(longer + 300, ":1");
	struct address a;

	EXPECT(address_resolve(&a, longer, false, why, sizeof(why)) == -EINVAL);
	EXPECT(address_resolve(&a, longer, false, why, 20) == -EINVAL && strlen(why) < 20);
	return NULL;
}

/* A host that no resolver can know. */
static const char *test_unknown(void)
{
	struct address a;

	EXPECT(address_resolve(&a, "no such host:1", false, why, sizeof(why)) == -ENOENT);
	EXPECT(strstr(why, "cannot resolve 'no such host'"));
	return NULL;
}

int main(void)
{
	run("address_good", test_good);
	run("address_malformed", test_malformed);
	run("address_unknown", test_unknown);
	return failed;
}
