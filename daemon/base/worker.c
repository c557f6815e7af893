#include "daemon/base/worker.h"

#include <assert.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

static void *work(void *arg)
{
	struct worker *w = arg;
	const uint64_t one = 1;

	pthread_mutex_lock(&w->mutex);
	for (;;) {
		while (!w->todo && !w->stop)
			pthread_cond_wait(&w->wanted, &w->mutex);
		if (w->stop)
			break;
		struct job *job = w->todo;

		w->todo = job->next;
		if (!w->todo)
			w->todo_end = &w->todo;
		pthread_mutex_unlock(&w->mutex);
		job->run(job);
		pthread_mutex_lock(&w->mutex);
		job->next = NULL;
		*w->finished_end = job;
		w->finished_end = &job->next;
		atomic_store_explicit(&w->any_finished, true, memory_order_release);
		/* A full eventfd wakes as well: the result does not matter. */
		if (write(w->wake_fd, &one, sizeof(one)) < 0)
			continue;
	}
	pthread_mutex_unlock(&w->mutex);
	return NULL;
}

int worker_open(struct worker *w, int wake_fd)
{
	sigset_t all, old;
	int err;

	memset(w, 0, sizeof(*w));
	w->todo_end = &w->todo;
	w->finished_end = &w->finished;
	w->wake_fd = wake_fd;
	pthread_mutex_init(&w->mutex, NULL);
	pthread_cond_init(&w->wanted, NULL);
	/* Signals are the loop's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&w->thread, NULL, work, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}

void worker_give(struct worker *w, struct job *job)
{
	assert(!job->out);
	job->out = true;
	job->next = NULL;
	pthread_mutex_lock(&w->mutex);
	*w->todo_end = job;
	w->todo_end = &job->next;
	pthread_cond_signal(&w->wanted);
	pthread_mutex_unlock(&w->mutex);
}

unsigned int worker_collect(struct worker *w)
{
	struct job *job;
	unsigned int n = 0;

	if (!atomic_load_explicit(&w->any_finished, memory_order_acquire))
		return 0;
	pthread_mutex_lock(&w->mutex);
	job = w->finished;
	w->finished = NULL;
	w->finished_end = &w->finished;
	atomic_store_explicit(&w->any_finished, false, memory_order_relaxed);
	pthread_mutex_unlock(&w->mutex);
	while (job) {
		struct job *next = job->next;

		job->out = false;
		n++;
		job->done(job);
		job = next;
	}
	return n;
}

void worker_close(struct worker *w)
{
	pthread_mutex_lock(&w->mutex);
	w->stop = true;
	pthread_cond_signal(&w->wanted);
	pthread_mutex_unlock(&w->mutex);
	pthread_join(w->thread, NULL);
	pthread_mutex_destroy(&w->mutex);
	pthread_cond_destroy(&w->wanted);
}
