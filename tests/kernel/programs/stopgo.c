/* argv: ROUNDS FILE. A child of seven threads that count, some of which open FILE with
 * O_NOATIME meanwhile, is stopped and continued ROUNDS times. Prints how often its parent heard
 * of a stop and of its going on, how often a thread counted while stopped, and what else came.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 7 };
static atomic_long *counts;
static const char *file;

static void *work(void *argument)
{
	long me = (long)argument;
	struct timespec moment = { 0, 100000 };
	for (;;) {
		counts[me]++;
		if (me % 3 == 0)
			close(open(file, O_RDONLY | O_NOATIME));
		else if (me % 3 == 1)
			nanosleep(&moment, NULL);
		else
			sched_yield();
	}
	return argument;
}

static long sum(void)
{
	long total = 0;
	for (int i = 0; i < THREADS; i++)
		total += counts[i];
	return total;
}

int main(int argc, char **argv)
{
	int rounds = argc == 3 ? atoi(argv[1]) : 0, stopped = 0, continued = 0, moved = 0, else_ = 0;
	if (argc != 3)
		return 2;
	file = argv[2];
	counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid = fork();
	if (pid == 0) {
		pthread_t id;
		for (long i = 1; i < THREADS; i++)
			pthread_create(&id, NULL, work, (void *)i);
		work(NULL);
	}
	for (int round = 0; round < rounds; round++) {
		int status, signals[] = { SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU };
		for (int i = 0; i < THREADS; i++) {
			long before = counts[i];
			while (counts[i] == before)
				sched_yield();
		}
		setpgid(pid, pid); /* not orphaned: a terminal's stop signals do stop it */
		kill(pid, signals[round % 4]);
		waitpid(pid, &status, WUNTRACED);
		stopped += WIFSTOPPED(status) && WSTOPSIG(status) == signals[round % 4];
		long before = sum();
		struct timespec start, now;
		clock_gettime(CLOCK_MONOTONIC, &start);
		do {
			sched_yield();
			clock_gettime(CLOCK_MONOTONIC, &now);
		} while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < 3000000);
		moved += sum() != before;
		kill(pid, SIGCONT);
		waitpid(pid, &status, WCONTINUED);
		continued += WIFCONTINUED(status);
		else_ += waitpid(pid, &status, WUNTRACED | WCONTINUED | WNOHANG) != 0;
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	printf("stopped %d continued %d moved %d else %d\n", stopped, continued, moved, else_);
	return 0;
}
