/* primary.h - inside the command `primary`: its parts, and nobody else's.
 *
 *   primary.c         command line, one cycle, status
 *   primary_attach.c  databases come and go
 *   primary_idle.c    what to do without work: spin, nap, sleep; the tap in and out */
#ifndef WALWIRE_PRIMARY_H
#define WALWIRE_PRIMARY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "daemon/base/pace.h"
#include "daemon/capture/capture.h"
#include "daemon/capture/tap.h"
#include "daemon/cmd/node.h"
#include "daemon/ship/server.h"

#define MS		1000000ull
#define ATTACH_RETRY_MS 100
#define IDENTITY_MS	1000 /* how often the path is compared with the file we have open */
#define TAP_REST_MS	250 /* not needed for so long: take its programs out */
#define TAP_RETRY_MS	10000 /* they could not be put back: try again */

enum db_state { DB_WAITING, DB_ATTACHED };

struct primary_db {
	struct feed feed;
	struct capture capture;
	enum db_state state;
	bool heard;	  /* the tap knows its -shm */
	bool gate_wanted; /* a checkpoint was announced */
	char detail[256];
	char record_path[DB_PATH_MAX + 16];
	struct stat identity;
	uint64_t look_ns; /* next attempt to attach, or look at the identity */
	uint64_t seen_txid;
	uint32_t seen_frame; /* of the WAL, at the last nap */
};

/* Where the tap's programs are. Moving them takes milliseconds, so the worker does it. */
enum tap_place { TAP_IN, TAP_LEAVING, TAP_OUT, TAP_COMING };

struct primary {
	struct node node;
	struct pace pace;
	struct tap *tap;
	enum tap_place tap_place;
	struct job tap_job;
	int tap_error;	      /* the worker's: of the last move */
	bool tap_lost;	      /* it could not be put back */
	uint64_t tap_used_ns; /* when it was needed last */
	uint64_t tap_retry_ns;
	struct loop_op tap_op;
	bool tap_event;
	struct server server;
	struct primary_db *db[DATABASES_MAX];
	struct feed *feeds[DATABASES_MAX];
	int count;
	unsigned int deferred;
	bool durable;
};

/* Would waiting not help? */
bool primary_fatal(enum conn_problem problem);
/* Open database `i`, waiting for locks up to `busy_ms`; `why` says in a sentence why not. */
enum conn_problem primary_attach(struct primary *p, int i, int busy_ms, char *why,
				 size_t why_bytes);
/* Not attached: look again now and then. Attached: is the path still the file we have open? */
void primary_try_attach(struct primary *p, int i);
void primary_check_identity(struct primary *p, int i);

void primary_idle_init(struct primary *p);
/* Consume what the tap has to say, if there is anything. */
void primary_take_tap_events(struct primary *p);
/* Are the programs in? Else they are called for, and will be in some milliseconds. */
bool primary_tap_ready(struct primary *p);
/* A database came or went, or the tap: can everything that is attached wake us? */
void primary_review_tap(struct primary *p);
/* Once a cycle: programs that nobody needed for a while go. */
void primary_rest_tap(struct primary *p);
/* There was no work in this cycle. */
void primary_idle(struct primary *p);

#endif
