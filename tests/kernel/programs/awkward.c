/* argv: MODE FILE. Opens FILE with O_NOATIME in an awkward place; exit status 0 if it could.
 *   thread-exec   a thread that is not the leader execs this program again ("open" mode)
 *   zombie-leader the leader exits first, the other thread opens
 *   vfork         a vfork child execs "open" mode
 *   spawn         a child of posix_spawn(3) execs "open" mode
 *   orphan        opens after its parent has ended
 *   clone0        a clone whose exit signal is 0
 *   clone3-0      the same by clone3(2)
 *   open          just opens
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self, *file;

static int try(void)
{
	return open(file, O_RDONLY | O_NOATIME) < 0;
}

static void *exec_again(void *unused)
{
	execl(self, self, "open", file, NULL);
	return unused;
}

static void *open_alone(void *leader)
{
	pthread_join(*(pthread_t *)leader, NULL);
	exit(try());
}

static int in_clone(void *unused)
{
	(void)unused;
	return try();
}

int main(int argc, char **argv)
{
	static pthread_t id, leader;
	static char stack[65536];
	int status = 0;
	if (argc != 3)
		return 2;
	self = argv[0];
	file = argv[2];
	if (!strcmp(argv[1], "thread-exec")) {
		pthread_create(&id, NULL, exec_again, NULL);
		pause();
	} else if (!strcmp(argv[1], "zombie-leader")) {
		leader = pthread_self();
		pthread_create(&id, NULL, open_alone, &leader);
		pthread_exit(NULL);
	} else if (!strcmp(argv[1], "vfork")) {
		if (vfork() == 0) {
			execl(self, self, "open", file, NULL);
			_exit(3);
		}
		wait(&status);
		return status != 0;
	} else if (!strcmp(argv[1], "spawn")) {
		char *arguments[] = { self, "open", file, NULL };
		pid_t pid;
		return posix_spawn(&pid, self, NULL, NULL, arguments, NULL)
			|| waitpid(pid, &status, 0) != pid || status != 0;
	} else if (!strcmp(argv[1], "orphan")) {
		int gate[2], result[2];
		char c = 9;
		if (pipe(gate) || pipe(result))
			return 2;
		if (fork() == 0) {
			if (fork() == 0) {
				close(gate[1]);
				if (read(gate[0], &c, 1))
					_exit(2);
				c = try();
				_exit(write(result[1], &c, 1) != 1);
			}
			_exit(0);
		}
		wait(&status);
		close(gate[1]);
		return read(result[0], &c, 1) != 1 || c;
	} else if (!strcmp(argv[1], "clone0")) {
		pid_t pid = clone(in_clone, stack + sizeof stack, CLONE_VM | CLONE_FS, NULL);
		return waitpid(pid, &status, __WCLONE) != pid || status;
	} else if (!strcmp(argv[1], "clone3-0")) {
		struct clone_args arguments = { .exit_signal = 0 };
		pid_t pid = syscall(SYS_clone3, &arguments, sizeof arguments);
		if (pid == 0)
			_exit(try());
		return waitpid(pid, &status, __WCLONE) != pid || status;
	}
	return try();
}
