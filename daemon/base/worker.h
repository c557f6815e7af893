/* worker.h - the second thread: it does what may block (scans, seeding reads, checkpoints).
 *
 * The loop hands it jobs; when one has run, its `done` is called on the loop's thread. Jobs run
 * one at a time, in order. A job belongs to the caller and is untouched by him while it is out. */
#ifndef WALWIRE_WORKER_H
#define WALWIRE_WORKER_H

#include <pthread.h>
#include <stdbool.h>

struct job {
	void (*run)(struct job *job);  /* worker's thread */
	void (*done)(struct job *job); /* loop's thread */
	struct job *next;
	bool out; /* loop's thread: given and not yet done */
};

struct worker {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t wanted;
	struct job *todo, **todo_end;
	struct job *finished, **finished_end;
	_Atomic bool any_finished;
	bool stop;
	int wake_fd; /* the loop's eventfd; written when a job has run */
};

int worker_open(struct worker *w, int wake_fd);
void worker_give(struct worker *w, struct job *job);
/* Loop's thread: call `done` of what has run. Their number. */
unsigned int worker_collect(struct worker *w);
/* Let the running job end, drop the others, stop. `done` is called for none. */
void worker_close(struct worker *w);

#endif
