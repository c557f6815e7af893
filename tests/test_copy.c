/* test_copy - pages go to their places in a file nobody sees until it is whole. */
#include "tests/testing.h"

#include <sys/resource.h>

#include "daemon/apply/copy.h"
#include "tests/batches.h"

#define SEED in_scratch(".app.db.seed")
#define PATH in_scratch("app.db")

static struct copy c;

/* `n` frames of these pages, one after the other; the image learns of them. */
static uint8_t *frames(struct image *m, const uint32_t *pgno, uint32_t n)
{
	struct maker maker = {.page_bytes = m->page_bytes};
	size_t stride = batch_frame_bytes(m->page_bytes);
	uint8_t *at = malloc(n * stride);

	for (uint32_t i = 0; i < n; i++) {
		make_frame(&maker, at + i * stride, pgno[i], 0, 0);
		image_put(m, pgno[i], at + i * stride + FRAME_HEADER_BYTES);
	}
	return at;
}

/* In runs and single, in any order, some of them twice: the file has the newest of each. */
static const char *test_pages(void)
{
	static const uint32_t size[] = {512, 4096, 65536};

	for (int round = 0; round < 9; round++) {
		struct image m = {.page_bytes = size[round % 3]};
		uint32_t pgno[1500];

		c.fd = -1;
		EXPECT(copy_begin(&c, SEED, m.page_bytes) == 0);
		for (int k = 0; k < 4; k++) {
			uint32_t n = 1 + below(m.page_bytes > 5000 ? 30 : 1200), at = 1 + below(50);

			for (uint32_t i = 0; i < n; i++) {
				pgno[i] = at++;
				if (below(20) == 0)
					at = 1 + below(800);
			}
			uint8_t *f = frames(&m, pgno, n);

			EXPECT(copy_pages(&c, f, n) == 0);
			free(f);
		}
		EXPECT(access(PATH, F_OK) < 0);
		EXPECT(copy_finish(&c, SEED, PATH, m.pages) == 0 && c.fd == -1);
		EXPECT(access(SEED, F_OK) < 0);
		EXPECT(image_is_file(&m, PATH));
		EXPECT(unlink(PATH) == 0);
		image_free(&m);
	}
	return NULL;
}

/* It is cut to the size it has in the end, or grows to it. */
static const char *test_size(void)
{
	static const uint32_t pgno[] = {1, 2, 3, 4, 5, 6};

	for (uint32_t pages = 3; pages <= 9; pages += 3) {
		struct image m = {.page_bytes = 512};
		uint8_t *f = frames(&m, pgno, 6);

		c.fd = -1;
		EXPECT(copy_begin(&c, SEED, 512) == 0 && copy_pages(&c, f, 6) == 0);
		EXPECT(copy_finish(&c, SEED, PATH, pages) == 0);
		if (pages > 6)
			image_put(&m, pages, (const uint8_t[512]){0});
		image_cut(&m, pages);
		EXPECT(image_is_file(&m, PATH));
		EXPECT(unlink(PATH) == 0);
		image_free(&m);
		free(f);
	}
	return NULL;
}

/* Begun anew, what an earlier attempt left is gone; aborted, nothing is left. */
static const char *test_anew(void)
{
	static const uint32_t pgno[] = {9, 1};
	struct image m = {.page_bytes = 512};
	uint8_t *f = frames(&m, pgno, 1);

	c.fd = -1;
	EXPECT(copy_begin(&c, SEED, 512) == 0 && copy_pages(&c, f, 1) == 0);
	free(f);
	image_free(&m);
	m.page_bytes = 512;
	EXPECT(copy_begin(&c, SEED, 512) == 0);
	f = frames(&m, pgno + 1, 1);
	EXPECT(copy_pages(&c, f, 1) == 0);
	EXPECT(copy_finish(&c, SEED, PATH, 1) == 0);
	EXPECT(image_is_file(&m, PATH));
	EXPECT(unlink(PATH) == 0);
	EXPECT(copy_begin(&c, SEED, 512) == 0 && copy_pages(&c, f, 1) == 0);
	copy_abort(&c, SEED);
	EXPECT(c.fd == -1 && access(SEED, F_OK) < 0 && access(PATH, F_OK) < 0);
	free(f);
	image_free(&m);
	return NULL;
}

/* A file that has come to stand there meanwhile is not replaced, and the copy is not lost. */
static const char *test_in_the_way(void)
{
	static const uint32_t pgno[] = {1};
	struct image m = {.page_bytes = 512};
	uint8_t *f = frames(&m, pgno, 1);

	c.fd = -1;
	EXPECT(copy_begin(&c, SEED, 512) == 0 && copy_pages(&c, f, 1) == 0);
	EXPECT(shell("echo mine > '%s'", PATH) == 0);
	EXPECT(copy_finish(&c, SEED, PATH, 1) == -EEXIST);
	EXPECT(shell("grep -q mine '%s'", PATH) == 0);
	EXPECT(unlink(PATH) == 0);
	EXPECT(copy_finish(&c, SEED, PATH, 1) == 0 && image_is_file(&m, PATH));
	free(f);
	image_free(&m);
	return NULL;
}

/* No room, no directory: an error, and the same pages again later. */
static const char *test_no_room(void)
{
	static const uint32_t pgno[] = {1, 2, 3, 4, 5, 6, 7, 8};
	struct image m = {.page_bytes = 4096};
	uint8_t *f = frames(&m, pgno, 8);
	struct rlimit old, tight;

	signal(SIGXFSZ, SIG_IGN);
	c.fd = -1;
	EXPECT(copy_begin(&c, in_scratch("no/where"), 4096) == -ENOENT && c.fd == -1);
	EXPECT(copy_begin(&c, SEED, 4096) == 0);
	getrlimit(RLIMIT_FSIZE, &old);
	tight = old;
	tight.rlim_cur = 10000;
	setrlimit(RLIMIT_FSIZE, &tight);
	EXPECT(copy_pages(&c, f, 8) < 0);
	setrlimit(RLIMIT_FSIZE, &old);
	EXPECT(copy_pages(&c, f, 8) == 0);
	EXPECT(copy_finish(&c, SEED, PATH, 8) == 0 && image_is_file(&m, PATH));
	free(f);
	image_free(&m);
	return NULL;
}

int main(void)
{
	run("copy_pages", test_pages);
	run("copy_size", test_size);
	run("copy_anew", test_anew);
	run("copy_in_the_way", test_in_the_way);
	run("copy_no_room", test_no_room);
	return failed;
}
