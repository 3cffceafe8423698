/* argv: CALL FILE OTHER OPENS. Opens FILE with O_NOATIME, by CALL (openat or openat2), while
 * another thread sends this one signals, whose handler opens OTHER in the same way. Goes on for
 * OPENS, or longer if that takes it, until seven handlers were "between": they ran where the
 * system call instruction of the interrupted open was to run again.
 * Prints how many opens there were, and how many of each file failed or gave another one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static const char *file, *other;
static int number;
static pid_t thread;
static ino_t file_inode, other_inode;
static volatile sig_atomic_t in_call, sent, done;
static int wrong, wrong_in_handler, handled, between;

static int open_right(const char *path, ino_t inode)
{
	struct open_how how = { .flags = O_RDONLY | O_NOATIME };
	struct stat now;
	int fd = number == SYS_openat
		? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_NOATIME)
		: syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
	int right = fd >= 0 && fstat(fd, &now) == 0 && now.st_ino == inode
		&& how.flags == (O_RDONLY | O_NOATIME) && !how.mode && !how.resolve;
	close(fd);
	return right;
}

static void on_signal(int unused, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
	int saved = errno;
	(void)unused, (void)info;
	if (registers[REG_RAX] == number && !memcmp((void *)registers[REG_RIP], "\x0f\x05", 2))
		between++;
	handled++;
	if (!open_right(other, other_inode))
		wrong_in_handler++;
	errno = saved;
	sent = 0;
}

static void *send(void *unused)
{
	while (!done)
		if (in_call && !sent) {
			sent = 1;
			syscall(SYS_tgkill, getpid(), thread, SIGUSR1);
		}
	return unused;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	struct stat status;
	pthread_t id;
	if (argc != 5)
		return 2;
	number = strcmp(argv[1], "openat") ? SYS_openat2 : SYS_openat;
	file = argv[2];
	other = argv[3];
	if (stat(file, &status))
		return 2;
	file_inode = status.st_ino;
	if (stat(other, &status))
		return 2;
	other_inode = status.st_ino;
	thread = gettid();
	sigaction(SIGUSR1, &action, NULL);
	pthread_create(&id, NULL, send, NULL);
	int opens = 0, enough = atoi(argv[4]);
	for (; opens < enough || (between < 7 && opens < 97 * enough); opens++) {
		in_call = 1;
		if (!open_right(file, file_inode))
			wrong++;
		in_call = 0;
	}
	done = 1;
	pthread_join(id, NULL);
	printf("opens %d wrong %d %d handled %d between %d\n", opens, wrong, wrong_in_handler, handled, between);
	return 0;
}
