// SPDX-License-Identifier: GPL-2.0-only
/*
 * A parent that hears of its children's ends by pidfd_open(2), and then waits for each once
 * without blocking, as GLib does. Prints, for each way to end, how many were there to be waited
 * for, and what they ended with.
 *
 *   reaper ROUNDS | WAY: the latter ends in a way itself
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *program;

static void *pausing(void *unused)
{
	pause();
	return unused;
}

static void *ending(void *leader)
{
	pthread_join(*(pthread_t *)leader, NULL);
	usleep(1000);
	_exit(7); /* exit_group(2) */
}

static void *executing(void *unused)
{
	execl(program, program, "exit", NULL);
	return unused;
}

static void start(void *(*function)(void *))
{
	static pthread_t leader;
	pthread_t thread;

	leader = pthread_self();
	if (pthread_create(&thread, NULL, function, &leader))
		abort();
}

static void end_by(const char *way)
{
	if (!strcmp(way, "kill"))
		raise(SIGKILL);
	if (!strcmp(way, "abort"))
		abort();
	if (!strcmp(way, "threads"))
		for (int count = 0; count < 3; count++)
			start(pausing);
	if (!strcmp(way, "leader")) { /* ends before the process does */
		start(ending);
		pthread_exit(NULL);
	}
	if (!strcmp(way, "exec")) { /* by another thread than the leader */
		start(executing);
		pause();
	}
	_exit(7);
}

int main(int argc, char **argv)
{
	static const char *ways[] = {"exit", "kill", "abort", "threads", "leader", "exec"};
	int rounds = argc > 1 ? atoi(argv[1]) : 0;

	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
	program = argv[0];
	if (!rounds)
		end_by(argv[1]);
	for (unsigned way = 0; way < sizeof ways / sizeof *ways; way++) {
		int there = 0, statuses = 0;
		for (int round = 0; round < rounds; round++) {
			int status, pid = fork();
			if (!pid)
				end_by(ways[way]);
			struct pollfd end = {.fd = syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
			if (poll(&end, 1, -1) != 1)
				abort();
			close(end.fd);
			if (waitpid(pid, &status, WNOHANG) == pid)
				there++;
			else
				waitpid(pid, &status, 0);
			statuses |= status;
		}
		printf("%s %d %#x\n", ways[way], there, statuses);
	}
	return 0;
}
