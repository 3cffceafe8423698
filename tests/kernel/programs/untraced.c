/* argv: CALL FILE. A child made by CALL (clone or clone3) with CLONE_UNTRACED opens FILE with
 * O_NOATIME. Exit status 0 if it could, its errno if not, 99 if the parent finds what it gave to
 * CALL changed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long enter(long number, long first, long second, long *first_after)
{
	register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0;
	long result;
	__asm__ volatile("syscall" : "=a"(result), "+D"(first) : "0"(number), "S"(second), "d"(0L),
			 "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	*first_after = first;
	return result;
}

int main(int argc, char **argv)
{
	struct clone_args how = { .flags = CLONE_UNTRACED, .exit_signal = SIGCHLD }, before = how;
	long flags = CLONE_UNTRACED | SIGCHLD, after, first, pid;
	int status;
	if (argc != 3)
		return 98;
	if (strcmp(argv[1], "clone")) {
		first = (long)&how;
		pid = enter(SYS_clone3, first, sizeof how, &after);
	} else {
		first = flags;
		pid = enter(SYS_clone, first, 0, &after);
	}
	if (pid == 0)
		_exit(open(argv[2], O_RDONLY | O_NOATIME) < 0 ? errno : 0);
	if (after != first || memcmp(&how, &before, sizeof how))
		return 99;
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 97;
}
