/* argv: FILE. A program whose own seccomp filter sends openat to a listener of its own, which lets
 * every call go on (seccomp(2), SECCOMP_USER_NOTIF_FLAG_CONTINUE). Opens FILE with O_NOATIME and
 * prints what came of it, and how many calls the listener saw. Exit status 77 if it cannot listen.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int listener, seen;

static void *answer(void *unused)
{
	struct seccomp_notif call;
	struct seccomp_notif_resp response;
	for (;;) {
		memset(&call, 0, sizeof call);
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call))
			return unused;
		seen++;
		memset(&response, 0, sizeof response);
		response.id = call.id;
		response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
	}
}

int main(int argc, char **argv)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	pthread_t id;
	if (argc != 2)
		return 2;
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
			   &program);
	if (listener < 0 || pthread_create(&id, NULL, answer, NULL))
		return 77;
	int fd = open(argv[1], O_RDONLY | O_NOATIME);
	printf("errno %d seen %d\n", fd < 0 ? errno : 0, seen);
	fflush(stdout);
	_exit(0);
}
