/* node.h - what a primary and a replica have in common: the loop, the worker, the control socket,
 * the state directory, signals. */
#ifndef WALWIRE_NODE_H
#define WALWIRE_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/control.h"
#include "daemon/base/loop.h"
#include "daemon/base/pace.h"
#include "daemon/base/status.h"
#include "daemon/base/worker.h"

#define RING_BYTES_DEFAULT (64ull << 20)

struct node {
	const char *state_dir;
	int wake_fd; /* eventfd: the worker or the control thread has something for us */
	int signal_fd;
	struct loop loop;
	struct worker worker;
	struct control *control;
	struct loop_op wake_op, signal_op;
	bool stop;
	bool wake_pending; /* the eventfd was written: look */
	uint64_t cycle_begin_ns;
};

/* Make the state directory (the control socket locks it), block the signals, start the threads; then pin this one to
 * `cpu` (-1: not). False: a line says why. */
bool node_open(struct node *n, const char *state_dir, int64_t cpu);
void node_close(struct node *n);

/* Once a cycle: the clock, completions, finished jobs. The work done. */
unsigned int node_cycle(struct node *n);

/* Check and normalize --cpu, --ring-bytes, --idle, an address. False: a line says what is wrong. */
bool node_check_ring(uint64_t *ring_bytes);
bool node_check_cpu(const char *text, int64_t *ret_cpu);

/* The base name of `path` as a database's name. False: a line says what is wrong with it. */
bool node_db_name(const char *path, char name[DB_NAME_MAX]);

#endif
