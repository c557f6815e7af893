/* test_loop - what the loop does with its thread. Its operations are tested by all that use it. */
#include "tests/testing.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "daemon/base/loop.h"

static int nice_now(void)
{
	return getpriority(PRIO_PROCESS, 0);
}

/* Steps back once, comes back to where it was, as often as asked. */
static const char *test_step_back(void)
{
	struct rlimit limit;
	int before = nice_now();

	getrlimit(RLIMIT_NICE, &limit);
	if (geteuid() && (int64_t)limit.rlim_cur < 20 - before)
		return NULL; /* the next test */
	for (int i = 0; i < 3; i++) {
		loop_step_back(true);
		loop_step_back(true);
		EXPECT(nice_now() == before + LOOP_NICE);
		loop_step_back(false);
		loop_step_back(false);
		EXPECT(nice_now() == before);
	}
	return NULL;
}

/* Who could not come back does not go. */
static const char *test_no_way_back(void)
{
	struct rlimit none = {0, 0};
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		int before = nice_now();

		if (setrlimit(RLIMIT_NICE, &none) < 0 || (geteuid() == 0 && setuid(65534) < 0))
			_exit(2);
		loop_step_back(true);
		_exit(nice_now() != before);
	}
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	return NULL;
}

/* Pinned to a core; a core that does not exist is refused. */
static const char *test_pin(void)
{
	cpu_set_t before, now;

	EXPECT(sched_getaffinity(0, sizeof(before), &before) == 0);
	EXPECT(loop_pin(-1) == -EINVAL && loop_pin(CPU_SETSIZE) == -EINVAL);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &before))
			continue;
		EXPECT(loop_pin(cpu) == 0 && sched_getcpu() == cpu);
		EXPECT(sched_getaffinity(0, sizeof(now), &now) == 0 && CPU_COUNT(&now) == 1);
		break;
	}
	EXPECT(sched_setaffinity(0, sizeof(before), &before) == 0);
	return NULL;
}

int main(void)
{
	run("loop_step_back", test_step_back);
	run("loop_no_way_back", test_no_way_back);
	run("loop_pin", test_pin);
	return failed;
}
