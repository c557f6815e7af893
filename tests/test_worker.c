/* test_worker - jobs run elsewhere, in order, and come back here. */
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>

#include "tests/testing.h"

#include "daemon/base/worker.h"

#define JOBS 200

struct task {
	struct job job; /* first */
	int number;
	pthread_t ran_in;
	bool ran, done;
};

static struct worker worker;
static struct task task[JOBS];
static _Atomic int ran;
static int done_count, wake_fd;
static _Atomic bool gate;

static void task_run(struct job *job)
{
	struct task *t = (struct task *)job;

	while (!atomic_load(&gate))
		usleep(100);
	t->ran_in = pthread_self();
	/* Out of order it would not be counted. */
	t->ran = atomic_load(&ran) == t->number;
	atomic_store(&ran, t->number + 1);
}

static void task_done(struct job *job)
{
	struct task *t = (struct task *)job;

	t->done = !job->out && done_count == t->number && pthread_equal(pthread_self(), worker.thread) == 0;
	done_count++;
}

static void start(void)
{
	memset(task, 0, sizeof(task));
	atomic_store(&ran, 0);
	atomic_store(&gate, true);
	done_count = 0;
	for (int i = 0; i < JOBS; i++)
		task[i] = (struct task){.job = {.run = task_run, .done = task_done}, .number = i};
	wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	worker_open(&worker, wake_fd);
}

static void stop(void)
{
	worker_close(&worker);
	close(wake_fd);
}

static bool collect(int until)
{
	while (done_count < until) {
		struct pollfd p = {.fd = wake_fd, .events = POLLIN};
		uint64_t n;

		if (poll(&p, 1, LIMIT_MS) <= 0)
			return false;
		if (read(wake_fd, &n, sizeof(n)) == sizeof(n))
			worker_collect(&worker);
	}
	return true;
}

/* All run, one at a time, in order, in the worker's thread; `done` is called here, in order. */
static const char *test_order(void)
{
	start();
	for (int i = 0; i < JOBS; i++) {
		worker_give(&worker, &task[i].job);
		EXPECT(task[i].job.out);
		if (below(4) == 0)
			worker_collect(&worker);
	}
	EXPECT(collect(JOBS));
	for (int i = 0; i < JOBS; i++) {
		EXPECT(task[i].ran && task[i].done && !task[i].job.out);
		EXPECT(pthread_equal(task[i].ran_in, worker.thread));
	}
	EXPECT(worker_collect(&worker) == 0);
	stop();
	return NULL;
}

/* A job can be given again, from its own `done` too. */
static void give_again(struct job *job)
{
	struct task *t = (struct task *)job;

	t->number++;
	if (++done_count < 50)
		worker_give(&worker, job);
}

static const char *test_again(void)
{
	start();
	task[0].job.done = give_again;
	worker_give(&worker, &task[0].job);
	EXPECT(collect(50));
	EXPECT(atomic_load(&ran) == 50 && !task[0].job.out);
	stop();
	return NULL;
}

/* Closed with jobs waiting: the one that runs ends, the others are dropped, nobody is called. */
static const char *test_close(void)
{
	start();
	atomic_store(&gate, false);
	for (int i = 0; i < 10; i++)
		worker_give(&worker, &task[i].job);
	usleep(1000);
	atomic_store(&gate, true);
	stop();
	EXPECT(done_count == 0);
	start();
	stop();
	return NULL;
}

/* Signals are the loop's: the worker takes none. */
static const char *test_signals(void)
{
	sigset_t set;

	start();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	kill(getpid(), SIGUSR1); /* would kill us if the worker took it */
	worker_give(&worker, &task[0].job);
	EXPECT(collect(1));
	sigpending(&set);
	EXPECT(sigismember(&set, SIGUSR1));
	stop();
	return NULL;
}

int main(void)
{
	run("worker_order", test_order);
	run("worker_again", test_again);
	run("worker_close", test_close);
	run("worker_signals", test_signals);
	return failed;
}
