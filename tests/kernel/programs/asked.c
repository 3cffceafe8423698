/* Opens a file with O_NOATIME as it is told to on standard input, a line "WAY COUNT" each time:
 * openat, open, setfl, openat2, raw, fork (openat in a child), plain (without O_NOATIME), missing
 * (of a file that is not there), cwd (openat of the file's name after its last slash, in the
 * folder the program was started in). Answers
 * with a line of numbers: calls that succeeded, that failed with EPERM, that failed otherwise,
 * nanoseconds for all of them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int once(const char *way, const char *file)
{
	struct open_how how = { .flags = O_RDONLY | O_NOATIME };
	int fd, result;

	if (!strcmp(way, "setfl")) {
		fd = open(file, O_RDONLY);
		result = fcntl(fd, F_SETFL, O_NOATIME);
		int saved = errno;
		close(fd);
		errno = saved;
		return result;
	}
	if (!strcmp(way, "open"))
		fd = open(file, O_RDONLY | O_NOATIME);
	else if (!strcmp(way, "openat2"))
		fd = syscall(SYS_openat2, AT_FDCWD, file, &how, sizeof how);
	else if (!strcmp(way, "raw"))
		fd = syscall(SYS_openat, AT_FDCWD, file, O_RDONLY | O_NOATIME);
	else if (!strcmp(way, "cwd"))
		fd = openat(AT_FDCWD, strrchr(file, '/') + 1, O_RDONLY | O_NOATIME);
	else if (!strcmp(way, "missing"))
		fd = openat(AT_FDCWD, "/nonexistent/file", O_RDONLY | O_NOATIME);
	else if (!strcmp(way, "plain"))
		fd = openat(AT_FDCWD, file, O_RDONLY);
	else
		fd = openat(AT_FDCWD, file, O_RDONLY | O_NOATIME);
	if (fd >= 0)
		close(fd);
	return fd;
}

static void serve(const char *way, long count, const char *file)
{
	struct timespec begin, end;
	long good = 0, refused = 0, other = 0;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (long at = 0; at < count; at++) {
		if (once(way, file) >= 0)
			good++;
		else if (errno == EPERM)
			refused++;
		else
			other++;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%ld %ld %ld %lld\n", good, refused, other,
	       (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char way[32];
	long count;

	while (argc == 2 && scanf("%31s %ld", way, &count) == 2) {
		if (strcmp(way, "fork")) {
			serve(way, count, argv[1]);
		} else if (fork() == 0) {
			serve("openat", count, argv[1]);
			_exit(0);
		} else {
			int status = 0;
			wait(&status);
			if (status) { /* it did not answer */
				printf("0 0 0 %d\n", status);
				fflush(stdout);
			}
		}
	}
	return 0;
}
