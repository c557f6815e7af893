#include "daemon/apply/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daemon/wire/batch.h"

#define RUN_MAX 512 /* pages in one pwritev */

int copy_begin(struct copy *c, const char *seed_path, uint32_t page_bytes)
{
	int fd = open(seed_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0)
		return -errno;
	if (c->fd >= 0)
		close(c->fd);
	c->fd = fd;
	c->page_bytes = page_bytes;
	return 0;
}

static int write_run(int fd, struct iovec *v, int n, uint64_t bytes, uint64_t offset)
{
	ssize_t done = pwritev(fd, v, n, (off_t)offset);

	if (done < 0)
		return -errno;
	/* A regular file takes less than asked for only when it can take no more. */
	return (uint64_t)done == bytes ? 0 : -ENOSPC;
}

int copy_pages(struct copy *c, const uint8_t *frames, uint32_t n)
{
	static struct iovec v[RUN_MAX];
	uint32_t stride = batch_frame_bytes(c->page_bytes);

	for (uint32_t i = 0; i < n;) {
		uint32_t first = frame_pgno(frames + (uint64_t)i * stride);
		uint32_t k = 0;
		int err;

		/* Pages that follow one another go out together. */
		while (i < n && k < RUN_MAX &&
		       frame_pgno(frames + (uint64_t)i * stride) == first + k) {
			const uint8_t *page = frames + (uint64_t)i * stride + FRAME_HEADER_BYTES;

			v[k++] = (struct iovec){(void *)(uintptr_t)page, c->page_bytes};
			i++;
		}
		err = write_run(c->fd, v, (int)k, (uint64_t)k * c->page_bytes,
				(uint64_t)(first - 1) * c->page_bytes);
		if (err)
			return err;
	}
	return 0;
}

int copy_finish(struct copy *c, const char *seed_path, const char *path, uint32_t db_pages)
{
	if (ftruncate(c->fd, (off_t)((uint64_t)db_pages * c->page_bytes)) < 0)
		return -errno;
	/* Never over a file that somebody has put there meanwhile. Not all file systems can say so. */
	if (renameat2(AT_FDCWD, seed_path, AT_FDCWD, path, RENAME_NOREPLACE) < 0 &&
	    (errno != EINVAL || access(path, F_OK) == 0 || rename(seed_path, path) < 0))
		return errno == EINVAL ? -EEXIST : -errno;
	close(c->fd);
	c->fd = -1;
	return 0;
}

void copy_abort(struct copy *c, const char *seed_path)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	unlink(seed_path);
}
