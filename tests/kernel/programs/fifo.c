/* argv: MODE FIFO. Opens a FIFO nobody writes to with O_NOATIME. After the second SIGALRM
 * a child opens it for writing, so that the open can return.
 *   restart    SA_RESTART: the kernel makes the call again after each signal
 *   interrupt  without: EINTR; the program tries again itself, once
 * Prints "attempts N" and exits 0 once it has the descriptor.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static const char *fifo;
static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
	(void)number;
	if (++alarms == 2 && fork() == 0) {
		open(fifo, O_WRONLY);
		_exit(0);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	fifo = argv[2];
	struct sigaction action = { .sa_handler = on_alarm,
		.sa_flags = strcmp(argv[1], "restart") ? 0 : SA_RESTART };
	sigaction(SIGALRM, &action, NULL);
	struct itimerval every = { { 0, 100000 }, { 0, 100000 } }, never = { { 0, 0 }, { 0, 0 } };
	setitimer(ITIMER_REAL, &every, NULL);
	int attempts = 0, fd;
	do {
		attempts++;
		fd = open(fifo, O_RDONLY | O_NOATIME);
	} while (fd < 0 && errno == EINTR);
	setitimer(ITIMER_REAL, &never, NULL);
	printf("attempts %d errno %d\n", attempts, fd < 0 ? errno : 0);
	return fd < 0;
}
