/* argv: MODE FILE [FILE2]. Odd calls; prints what came of each.
 *   shared SIZE  openat2 with a struct open_how of SIZE bytes in shared read-only memory
 *   tail SIZE    the same with something after the known part that is not zero
 *   tmpfile      O_TMPFILE in the folder FILE; whether O_NOATIME is on
 *   cookie DATA  a filter of our own that answers getppid with RET_TRACE and DATA
 *   open         open(2) of FILE
 *   at FD        openat(2) of FILE from the descriptor FD, as nobody
 *   setfl FD     F_SETFL of O_NOATIME and O_NONBLOCK on the descriptor FD
 *   vfork        a vfork child waits for a line on stdin; then its parent goes on
 *   strict       seccomp's strict mode, in which a program may read, write and exit
 *   ignored      epoll_wait of 0.3 s, while a child sends a signal that is ignored
 *   reuse        FILE is a FIFO: interrupted by SIGALRM, FILE2 is opened from the same buffer
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static void say(int fd)
{
	if (fd < 0)
		printf("errno %d\n", errno);
	else
		printf("noatime %d\n", !!(fcntl(fd, F_GETFL) & O_NOATIME));
}

static void on_alarm(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "shared") || !strcmp(argv[1], "tail")) {
		size_t size = atol(argv[3]);
		int memory = memfd_create("how", 0);
		struct open_how how = { .flags = O_RDONLY | O_NOATIME };
		if (ftruncate(memory, 4096) || pwrite(memory, &how, sizeof how, 0) < 0)
			return 2;
		if (!strcmp(argv[1], "tail") && pwrite(memory, "x", 1, 25) < 0)
			return 2;
		void *shared = mmap(NULL, 4096, PROT_READ, MAP_SHARED, memory, 0);
		say(syscall(SYS_openat2, AT_FDCWD, argv[2], shared, size));
	} else if (!strcmp(argv[1], "open")) {
		say(open(argv[2], O_RDONLY | O_NOATIME));
	} else if (!strcmp(argv[1], "at")) {
		if (setuid(65534))
			return 2;
		say(openat(atoi(argv[3]), argv[2], O_RDONLY | O_NOATIME));
	} else if (!strcmp(argv[1], "setfl")) {
		int fd = atoi(argv[3]);
		say(fcntl(fd, F_SETFL, O_NOATIME | O_NONBLOCK) ? -1 : fd);
	} else if (!strcmp(argv[1], "vfork")) {
		char c;
		if (vfork() == 0)
			_exit(read(0, &c, 1) != 1);
		say(open(argv[2], O_RDONLY | O_NOATIME));
	} else if (!strcmp(argv[1], "strict")) {
		char line[] = "strict 0\n";
		if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
			line[7] = 'n';
		syscall(SYS_write, 1, line, sizeof line - 1);
		syscall(SYS_exit, 0);
	} else if (!strcmp(argv[1], "ignored")) {
		struct epoll_event event;
		pid_t parent = getpid();
		signal(SIGUSR1, SIG_IGN);
		if (fork() == 0) {
			for (; getppid() == parent; usleep(10000))
				kill(parent, SIGUSR1);
			_exit(0);
		}
		int set = epoll_create1(0), found = 0;
		for (int tries = 0; tries < 7 && found == 0; tries++)
			found = epoll_wait(set, &event, 1, 101);
		printf("epoll_wait %d\n", found < 0 ? -errno : found);
	} else if (!strcmp(argv[1], "tmpfile")) {
		say(open(argv[2], O_TMPFILE | O_RDWR | O_NOATIME, 0600));
	} else if (!strcmp(argv[1], "cookie")) {
		struct sock_filter code[] = {
			BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
			BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE | strtoul(argv[3], NULL, 0)),
			BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		};
		struct sock_fprog program = { sizeof code / sizeof *code, code };
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
		long result = syscall(SYS_getppid);
		printf("%ld %d\n", result, errno);
	} else if (!strcmp(argv[1], "reuse")) {
		char buffer[4096];
		struct sigaction action = { .sa_handler = on_alarm };
		struct itimerval once = { { 0, 0 }, { 0, 100000 } };
		sigaction(SIGALRM, &action, NULL);
		setitimer(ITIMER_REAL, &once, NULL);
		for (int i = 2; i < 4; i++) {
			strcpy(buffer, argv[i]);
			say(open(buffer, O_RDONLY | O_NOATIME));
		}
	}
	return 0;
}
