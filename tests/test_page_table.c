/* test_page_table - a hash for every page, their sum, and whether to believe it. */
#include "tests/testing.h"

#include "daemon/base/page_table.h"

/* What is set is got, also after it was closed; the sum is the sum, in whatever order it came about. */
static const char *test_set(void)
{
	static uint64_t model[5000];
	struct page_table t;
	uint32_t pages = 0;

	EXPECT(page_table_open(&t, in_scratch("pages"), 4096) == 0);
	EXPECT(page_table_trust(&t) == PAGE_TABLE_LOST && page_table_sum(&t) == 0);
	for (int i = 0; i < 20000; i++) {
		uint32_t pgno = 1 + below(i < 10000 ? 300 : 4999);
		uint64_t sum = 0;

		if (below(500) == 0) {
			uint32_t cut = below(pages + 1);

			page_table_cut(&t, cut);
			memset(model + cut + 1, 0, (5000 - cut - 1) * 8);
			pages = cut < pages ? cut : pages;
		} else {
			model[pgno] = rnd();
			pages = pgno > pages ? pgno : pages;
			EXPECT(page_table_set(&t, pgno, model[pgno]) == 0);
		}
		if (i % 2000 == 1999) {
			page_table_mark(&t, (enum page_table_trust)(i / 2000 % 3));
			page_table_close(&t);
			EXPECT(page_table_open(&t, in_scratch("pages"), 4096) == 0);
			EXPECT(page_table_trust(&t) == (enum page_table_trust)(i / 2000 % 3));
			for (uint32_t k = 1; k < 5000; k++) {
				EXPECT(page_table_get(&t, k) == model[k]);
				sum += model[k];
			}
			EXPECT(page_table_sum(&t) == sum);
		}
	}
	EXPECT(page_table_get(&t, 0) == 0 && page_table_get(&t, 0xffffffff) == 0);
	page_table_close(&t);
	return NULL;
}

/* It grows to where the page is; what lies between is not known. */
static const char *test_grow(void)
{
	struct page_table t;

	EXPECT(page_table_open(&t, in_scratch("pages"), 512) == 0);
	EXPECT(page_table_set(&t, 1, 11) == 0);
	EXPECT(page_table_set(&t, 3000000, 33) == 0);
	EXPECT(page_table_get(&t, 1) == 11 && page_table_get(&t, 3000000) == 33);
	EXPECT(page_table_get(&t, 1500000) == 0 && page_table_sum(&t) == 44);
	page_table_cut(&t, 2);
	EXPECT(page_table_sum(&t) == 11 && page_table_get(&t, 3000000) == 0);
	page_table_close(&t);
	return NULL;
}

/* Another page size, another format, rubbish: begun anew, and lost. */
static const char *test_anew(void)
{
	struct page_table t;

	EXPECT(page_table_open(&t, in_scratch("pages"), 512) == 0);
	EXPECT(page_table_set(&t, 5, 55) == 0);
	page_table_mark(&t, PAGE_TABLE_CLEAN);
	page_table_close(&t);
	EXPECT(page_table_open(&t, in_scratch("pages"), 1024) == 0);
	EXPECT(page_table_trust(&t) == PAGE_TABLE_LOST && page_table_get(&t, 5) == 0 &&
	       page_table_sum(&t) == 0);
	page_table_close(&t);
	shell("head -c 5000 /dev/urandom > '%s'", in_scratch("pages"));
	EXPECT(page_table_open(&t, in_scratch("pages"), 1024) == 0);
	EXPECT(page_table_trust(&t) == PAGE_TABLE_LOST && page_table_sum(&t) == 0);
	for (uint32_t p = 1; p < 2000; p++)
		EXPECT(page_table_get(&t, p) == 0);
	page_table_close(&t);
	EXPECT(page_table_open(&t, in_scratch("no/where"), 512) == -ENOENT);
	return NULL;
}

int main(void)
{
	run("page_table_set", test_set);
	run("page_table_grow", test_grow);
	run("page_table_anew", test_anew);
	return failed;
}
