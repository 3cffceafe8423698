/* argv: ROUNDS FILE. In each round a child whose two threads open FILE with O_NOATIME without
 * end is ended at some moment of it: by SIGKILL from outside, by exit_group of a third thread, or
 * by exec in one. Prints how many ended as they should; then FILE is opened once more.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static atomic_long *opens;
static const char *file;

static void *storm(void *unused)
{
	for (;;) {
		close(open(file, O_RDONLY | O_NOATIME));
		++*opens;
	}
	return unused;
}

static void spin(long nanoseconds)
{
	struct timespec start, now;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < nanoseconds);
}

int main(int argc, char **argv)
{
	int right = 0, rounds = argc == 3 ? atoi(argv[1]) : 0, fd;
	if (argc != 3)
		return 2;
	file = argv[2];
	opens = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int round = 0; round < rounds; round++) {
		int status, way = round % 3;
		*opens = 0;
		pid_t pid = fork();
		if (pid == 0) {
			pthread_t id;
			pthread_create(&id, NULL, storm, NULL);
			pthread_create(&id, NULL, storm, NULL);
			while (*opens < 3)
				;
			spin(round * 1009L);
			if (way == 1)
				_exit(11);
			if (way == 2)
				execlp("sh", "sh", "-c", "exit 13", NULL);
			pause();
		}
		while (*opens < 3)
			;
		spin(round * 1009L);
		if (way == 0)
			kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		right += status == (way == 0 ? SIGKILL : way == 1 ? 11 << 8 : 13 << 8);
	}
	fd = open(file, O_RDONLY | O_NOATIME);
	printf("right %d then %d\n", right, fd >= 0);
	return 0;
}
