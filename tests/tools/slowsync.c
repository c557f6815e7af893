/* slowsync.c - a slow disk: preloaded into a daemon, it makes each fsync and fdatasync last
 * $SLOWSYNC_US microseconds longer, before and after. A kill then often falls between "written"
 * and "synced", and between "synced" and what was to follow. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

int fsync(int fd);
int fdatasync(int fd);

static int slowly(const char *name, int fd)
{
	int (*real)(int) = (int (*)(int))(intptr_t)dlsym(RTLD_NEXT, name);
	const char *text = getenv("SLOWSYNC_US");
	useconds_t us = text ? (useconds_t)atoi(text) : 5000;
	int ret;

	usleep(us);
	ret = real(fd);
	usleep(us);
	return ret;
}

int fsync(int fd)
{
	return slowly("fsync", fd);
}

int fdatasync(int fd)
{
	return slowly("fdatasync", fd);
}
