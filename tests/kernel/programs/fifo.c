/* argv: MODE FIFO. Opens a FIFO nobody writes to with O_NOATIME. A child sends it two SIGALRM,
 * each once it sleeps in the open, and then opens the FIFO for writing, so that it can return.
 *   restart    SA_RESTART: the kernel makes the call again after each signal
 *   interrupt  without: EINTR; the program tries again itself
 * Prints "attempts N" and exits 0 once it has the descriptor.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile int *alarms; /* how many have been handled; shared with the child */

static void on_alarm(int number)
{
	(void)number;
	++*alarms;
}

static int sleeps(pid_t pid)
{
	char name[32], line[256] = "";
	snprintf(name, sizeof name, "/proc/%d/stat", pid);
	int fd = open(name, O_RDONLY);
	if (fd < 0 || read(fd, line, sizeof line - 1) < 0)
		return 0;
	close(fd);
	return strstr(line, ") S ") != NULL;
}

static void alarm_twice(pid_t parent, const char *fifo)
{
	for (int sent = 0; sent < 2; sent++) {
		while (getppid() == parent && (*alarms < sent || !sleeps(parent)))
			usleep(1000);
		kill(parent, SIGALRM);
	}
	while (getppid() == parent && *alarms < 2)
		usleep(1000);
	open(fifo, O_WRONLY);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	struct sigaction action = { .sa_handler = on_alarm,
		.sa_flags = strcmp(argv[1], "restart") ? 0 : SA_RESTART };
	sigaction(SIGALRM, &action, NULL);
	alarms = mmap(NULL, sizeof *alarms, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (alarms == MAP_FAILED)
		return 2;
	pid_t parent = getpid();
	if (fork() == 0) {
		alarm_twice(parent, argv[2]);
		_exit(0);
	}
	int attempts = 0, fd;
	do {
		attempts++;
		fd = open(argv[2], O_RDONLY | O_NOATIME);
	} while (fd < 0 && errno == EINTR);
	printf("attempts %d errno %d\n", attempts, fd < 0 ? errno : 0);
	return fd < 0;
}
