/* argv: FILE. Four threads make system calls of many kinds, blocking ones among them, until
 * stdin ends; then prints how many calls were made and how many went wrong. Wrong is any result
 * the program could not have had alone: EINTR without a signal handler, an errno over 133.
 * FILE is opened with O_NOATIME too; there EPERM is as right as success.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *file;
static atomic_long calls, wrong;
static atomic_int done;

static void check(long result, int allowed, const char *what)
{
	calls++;
	if (result < 0 && errno != allowed) {
		wrong++;
		fprintf(stderr, "%s: errno %d\n", what, errno);
	}
}

static void *opens(void *unused)
{
	while (!done) {
		int fd = open(file, O_RDONLY | O_NOATIME);
		check(fd, EPERM, "open O_NOATIME");
		if (fd >= 0) {
			int flags = fcntl(fd, F_GETFL);
			check(flags, 0, "F_GETFL");
			check(fcntl(fd, F_SETFL, flags | O_NONBLOCK), 0, "F_SETFL");
			check(close(fd), 0, "close");
		}
		fd = open(file, O_RDONLY);
		check(fd, 0, "open");
		check(close(fd), 0, "close");
	}
	return unused;
}

static void *sleeps(void *unused)
{
	struct timespec moment = { 0, 3000000 };
	struct epoll_event event;
	sigset_t signals;
	int set = epoll_create1(0);
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	while (!done) {
		check(clock_nanosleep(CLOCK_MONOTONIC, 0, &moment, NULL) ? -1 : 0, 0, "nanosleep");
		check(poll(NULL, 0, 3), 0, "poll");
		check(epoll_wait(set, &event, 1, 3), 0, "epoll_wait");
		check(sigtimedwait(&signals, NULL, &moment), EAGAIN, "sigtimedwait");
	}
	return unused;
}

static void *pipes(void *unused)
{
	int fd[2];
	char c = 'x';
	check(pipe(fd), 0, "pipe");
	while (!done) {
		check(write(fd[1], &c, 1), 0, "write");
		check(read(fd[0], &c, 1), 0, "read");
	}
	return unused;
}

static void *children(void *unused)
{
	while (!done) {
		pid_t pid = fork();
		if (pid == 0)
			_exit(0);
		check(pid, 0, "fork");
		int status = 1;
		check(waitpid(pid, &status, 0), 0, "waitpid");
		if (status)
			wrong++;
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t id[4];
	void *(*work[4])(void *) = { opens, sleeps, pipes, children };
	char c;
	if (argc != 2)
		return 2;
	file = argv[1];
	/* Under any tracer a signal that is ignored wakes its receiver all the same (ptrace(2)). */
	sigset_t ended;
	sigemptyset(&ended);
	sigaddset(&ended, SIGCHLD);
	pthread_sigmask(SIG_BLOCK, &ended, NULL);
	for (int i = 0; i < 4; i++)
		pthread_create(&id[i], NULL, work[i], NULL);
	check(read(0, &c, 1), 0, "read of stdin");
	done = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(id[i], NULL);
	printf("calls %s wrong %ld\n", calls > 1000 ? "many" : "few", (long)wrong);
	return 0;
}
