/* control_request.h - what can be asked at the control socket, and what a picture answers.
 *
 * Plain functions of a line, a request and a picture; control.h describes the words. */
#ifndef WALWIRE_CONTROL_REQUEST_H
#define WALWIRE_CONTROL_REQUEST_H

#include <stddef.h>
#include <stdio.h>

#include "daemon/base/status.h"

enum request_kind { REQUEST_BAD, REQUEST_JSON, REQUEST_TEXT, REQUEST_WAIT, REQUEST_RING };
enum level { LEVEL_RECEIVED, LEVEL_APPLIED, LEVEL_DURABLE, LEVEL_COUNT };

struct request {
	enum request_kind kind;
	enum level level;
	uint64_t txid; /* STATUS_UNKNOWN: what is captured now */
	char name[DB_NAME_MAX];
};

/* Parse a line without its newline, any bytes; what is no request is REQUEST_BAD. */
void request_parse(struct request *ret_q, const char *line, size_t bytes);

/* The database of that name, the only one for an empty name; NULL if there is none. */
const struct db_status *request_database(const struct node_status *s, const char *name);

/* Write the whole answer. `ring_fd` (REQUEST_RING) is the descriptor that goes with it, or the
 * -errno that is there instead. */
void request_answer(const struct request *q, const struct node_status *s, int ring_fd, FILE *out);

#endif
