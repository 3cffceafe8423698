/* argv: FLAGS COUNT FILE. COUNT times open(FILE, O_RDONLY | FLAGS) and close(), FLAGS being
 * "noatime" or "plain". Prints the nanoseconds it all took, and how many opens failed with EPERM.
 * Another error ends it: a benchmark of mistakes is none. Then waits for the end of its
 * standard input, so that whoever supervises it can be looked at after the last open.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	int flags = O_RDONLY | (strcmp(argv[1], "noatime") == 0 ? O_NOATIME : 0);
	long count = atol(argv[2]), refused = 0;
	long long start = now();
	for (long i = 0; i < count; i++) {
		int fd = open(argv[3], flags);
		if (fd >= 0)
			close(fd);
		else if (errno == EPERM)
			refused++;
		else {
			perror(argv[3]);
			return 1;
		}
	}
	printf("%lld %ld\n", now() - start, refused);
	fflush(stdout);
	char byte;
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return 0;
}
