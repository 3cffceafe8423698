/* argv: THREADS FILE. Once all threads are there, each opens FILE with O_NOATIME once, and all
 * stay until the last has. Prints how many could.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *file;
static pthread_barrier_t barrier;
static atomic_int opened;

static void *work(void *unused)
{
	pthread_barrier_wait(&barrier);
	int fd = open(file, O_RDONLY | O_NOATIME);
	opened += fd >= 0;
	close(fd);
	pthread_barrier_wait(&barrier);
	return unused;
}

int main(int argc, char **argv)
{
	int threads = argc == 3 ? atoi(argv[1]) : 0;
	pthread_attr_t small;
	pthread_t id[threads + 1];
	if (argc != 3)
		return 2;
	file = argv[2];
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	pthread_barrier_init(&barrier, NULL, threads);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&id[i], &small, work, NULL))
			return 3;
	for (int i = 0; i < threads; i++)
		pthread_join(id[i], NULL);
	printf("opened %d\n", opened);
	return 0;
}
