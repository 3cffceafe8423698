/* argv: FILE, which this program's user owns. One thread, and no other, has the fsuid of
 * somebody else for a while; both threads open FILE with O_NOATIME before, meanwhile and after.
 * Prints for each whether the open worked, and whether the descriptor has the flag.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *file;
static pthread_barrier_t barrier;

static void try(const char *who)
{
	int fd = open(file, O_RDONLY | O_NOATIME);
	printf("%s %d %d\n", who, fd < 0 ? errno : 0, fd >= 0 && !!(fcntl(fd, F_GETFL) & O_NOATIME));
	close(fd);
}

static void *other(void *unused)
{
	try("other");
	pthread_barrier_wait(&barrier);
	syscall(SYS_setfsuid, 65534); /* of this thread; libc's setuid() is for all of them */
	try("other");
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	syscall(SYS_setfsuid, 0);
	try("other");
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t id;
	if (argc != 2)
		return 2;
	file = argv[1];
	pthread_barrier_init(&barrier, NULL, 2);
	pthread_create(&id, NULL, other, NULL);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	try("first");
	pthread_barrier_wait(&barrier);
	pthread_join(id, NULL);
	try("first");
	return 0;
}
