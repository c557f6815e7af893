/* lister.h - asks a source which databases it has. Runs on the worker's thread. */
#ifndef WALWIRE_LISTER_H
#define WALWIRE_LISTER_H

#include "daemon/base/status.h"
#include "daemon/base/worker.h"
#include "daemon/wire/address.h"

#define LISTER_TIMEOUT_MS 3000

struct lister {
	struct job job; /* give it to the worker; done is the caller's */
	const struct address *source;
	int err; /* 0; -EPROTO: no walwire; -EPROTONOSUPPORT: another version; -errno */
	int count;
	char name[DATABASES_MAX][DB_NAME_MAX];
};

void lister_init(struct lister *l, const struct address *source, void (*done)(struct job *job));

#endif
