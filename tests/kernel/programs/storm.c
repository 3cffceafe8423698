/* argv: PROCESSES THREADS OPENS FILE. OPENS opens with O_NOATIME in all, spread over the
 * threads of the processes, or made by this very process if PROCESSES is 0; exit status 0 if every one succeeded and none was short-changed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *file;

static void *work(void *count)
{
	long failed = 0;
	for (long i = (long)count; i > 0; i--) {
		int fd = open(file, O_RDONLY | O_NOATIME);
		if (fd < 0)
			failed++;
		else
			close(fd);
	}
	return (void *)failed;
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	long processes = atol(argv[1]), threads = atol(argv[2]), opens = atol(argv[3]);
	long workers = processes * threads;
	file = argv[4];
	if (processes == 0)
		return work((void *)opens) != NULL;
	for (long p = 0; p < processes; p++) {
		if (fork() != 0)
			continue;
		pthread_t id[threads];
		long failed = 0;
		for (long t = 0; t < threads; t++) {
			long mine = opens / workers + (p * threads + t < opens % workers);
			pthread_create(&id[t], NULL, work, (void *)mine);
		}
		for (long t = 0; t < threads; t++) {
			void *result;
			pthread_join(id[t], &result);
			failed += (long)result;
		}
		_exit(failed != 0);
	}
	int status, bad = 0;
	while (wait(&status) > 0)
		bad |= status != 0;
	return bad;
}
