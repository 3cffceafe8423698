/* argv: PROCESSES THREADS OPENS FILE LOG. OPENS opens with O_NOATIME in all, whatever comes of
 * them. LOG gets eight bytes for each: the time it returned (CLOCK_REALTIME, nanoseconds), minus
 * that if it failed, or gave another file or one that is not at its start. A thread rests a moment
 * after a failure. The eight bytes after those are how many of its opens, the last ones, no thread
 * is to make yet. Exit status 7, or 8 if a process has other descriptors in the end than before.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *file;
static ino_t inode;
static volatile int64_t *held;

static void wait_until_held_are_fewer_than(long left)
{
	for (int tries = 0; *held >= left && tries < 300000; tries++)
		usleep(1000);
}

struct part {
	int64_t *log;
	long opens;
};

static void *work(void *argument)
{
	struct part *part = argument;
	for (long i = 0; i < part->opens; i++) {
		wait_until_held_are_fewer_than(part->opens - i);
		int fd = open(file, O_RDONLY | O_NOATIME);
		struct stat status;
		struct timespec now;
		if (fd >= 0 && (fstat(fd, &status) || status.st_ino != inode || lseek(fd, 0, SEEK_CUR)))
			fd = -1;
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

static int descriptors(void)
{
	int found = 0;
	for (int fd = 0; fd < 256; fd++)
		found += fcntl(fd, F_GETFD) >= 0;
	return found;
}

int main(int argc, char **argv)
{
	struct stat status;
	int leaked = 0, ended;
	if (argc != 6 || stat(argv[4], &status))
		return 2;
	inode = status.st_ino;
	long processes = atol(argv[1]), threads = atol(argv[2]), opens = atol(argv[3]);
	long workers = processes * threads, done = 0;
	file = argv[4];
	int fd = open(argv[5], O_RDWR);
	int64_t *log = mmap(NULL, (opens + 1) * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (log == MAP_FAILED)
		return 2;
	held = log + opens;
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
		int before = descriptors();
		for (long t = 0; t < threads; t++)
			pthread_create(&id[t], NULL, work, &parts[t]);
		for (long t = 0; t < threads; t++)
			pthread_join(id[t], NULL);
		_exit(descriptors() != before);
	}
	while (wait(&ended) > 0)
		leaked |= ended != 0;
	return leaked ? 8 : 7;
}
