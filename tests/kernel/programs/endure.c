/* argv: PROCESSES THREADS OPENS FILE LOG. OPENS opens with O_NOATIME in all, whatever comes of
 * them. LOG gets eight bytes for each: the time it returned (CLOCK_REALTIME, nanoseconds), minus
 * that if it failed. A thread rests a moment after a failure. Exit status 7.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *file;

struct part {
	int64_t *log;
	long opens;
};

static void *work(void *argument)
{
	struct part *part = argument;
	for (long i = 0; i < part->opens; i++) {
		int fd = open(file, O_RDONLY | O_NOATIME);
		struct timespec now;
		clock_gettime(CLOCK_REALTIME, &now);
		int64_t ns = now.tv_sec * 1000000000LL + now.tv_nsec;
		part->log[i] = fd < 0 ? -ns : ns;
		if (fd < 0)
			usleep(200);
		else
			close(fd);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	long processes = atol(argv[1]), threads = atol(argv[2]), opens = atol(argv[3]);
	long workers = processes * threads, done = 0;
	file = argv[4];
	int fd = open(argv[5], O_RDWR);
	int64_t *log = mmap(NULL, opens * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (log == MAP_FAILED)
		return 2;
	for (long p = 0; p < processes; p++) {
		struct part parts[threads];
		for (long t = 0; t < threads; t++) {
			parts[t].log = log + done;
			parts[t].opens = opens / workers + (p * threads + t < opens % workers);
			done += parts[t].opens;
		}
		if (fork() != 0)
			continue;
		pthread_t id[threads];
		for (long t = 0; t < threads; t++)
			pthread_create(&id[t], NULL, work, &parts[t]);
		for (long t = 0; t < threads; t++)
			pthread_join(id[t], NULL);
		_exit(0);
	}
	while (wait(NULL) > 0)
		;
	return 7;
}
