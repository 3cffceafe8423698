/* argv: MODE FOLDER OPENS. Starts as root. Nobody opens a path with O_NOATIME OPENS times, or more,
 * while what that names changes between what everybody may read and what root alone may:
 *   path      another thread writes another name to the memory of the path
 *   how       the same for openat2(2), with the flags changing as well
 *   link      a symbolic link leads to the one, then to the other
 *   exchange  two directories on the path are exchanged
 *   jail      the same under chroot(2), and the path climbs with ".."
 *   users     no change: threads of root's and of nobody's open what is root's at the same time
 *   reuse     who opens is killed, and a process of root's gets its ID
 * Prints how many opens read what was for everybody, how many what was not, how many failed with
 * an errno that they could not have met natively, and for the last one how often that went well.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *mode, *folder;
static int opens;
static atomic_int done, shared, secret, odd;
static char path[4096], names[2][4096];
static struct { _Atomic unsigned long flags, mode, resolve; } how;

static void look(int fd, int may_fail)
{
	char byte = 0;
	if (fd < 0) {
		odd += !may_fail || (errno != EACCES && errno != EPERM && errno != ENOENT && errno != ENOTDIR);
		return;
	}
	if (read(fd, &byte, 1) < 0)
		odd++;
	shared += byte == 'c';
	secret += byte == 's';
	close(fd);
}

static void *change(void *unused)
{
	char one[4200], two[4200], new[4200];
	size_t end = strlen(names[0]);
	snprintf(one, sizeof one, "%s/a", folder);
	snprintf(two, sizeof two, "%s/b", folder);
	snprintf(new, sizeof new, "%s/new", folder);
	for (unsigned n = 0; !done; n++) {
		if (!strcmp(mode, "path") || !strcmp(mode, "how")) {
			/* One letter makes the difference, so there is no third name in between. */
			((volatile char *)path)[end - 1] = names[n & 1][end - 1];
			how.flags ^= n & 2 ? O_DIRECTORY : O_CLOEXEC;
		} else if (!strcmp(mode, "link")) {
			if (symlink(names[n & 1], new) || rename(new, path))
				odd++;
		} else if (syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, two, RENAME_EXCHANGE)) {
			odd++;
		}
		if (n % 16 == 0)
			sched_yield();
	}
	return unused;
}

static int be_nobody(void)
{
	return setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534);
}

static void *user(void *is_root)
{
	if (!is_root) /* this thread alone */
		if (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, 65534, 65534, 65534)
		    || syscall(SYS_setresuid, 65534, 65534, 65534))
			odd++;
	for (int n = 0; n < opens; n++) {
		int fd = open(names[n & 1], O_RDONLY | O_NOATIME);
		if (!is_root)
			look(fd, n & 1);
		else if (fd < 0 || close(fd))
			odd++;
	}
	return NULL;
}

static void lose_fowner(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2];
	syscall(SYS_capget, &header, sets);
	sets[0].effective &= ~(1u << CAP_FOWNER);
	if (syscall(SYS_capset, &header, sets))
		_exit(1);
}

static int reuse(void)
{
	int went_well = 0;
	struct stat facts;
	for (int n = 0; n < opens; n++) {
		int ready[2];
		char byte;
		if (pipe(ready))
			return 1;
		pid_t pid = fork();
		if (!pid) {
			if (be_nobody() || write(ready[1], "x", 1) != 1)
				_exit(1);
			for (;;) /* O_TRUNC: an open that nobody gets is seen all the same */
				open(names[1], O_RDWR | O_TRUNC | O_NOATIME);
		}
		if (read(ready[0], &byte, 1) != 1)
			return 1;
		usleep(n % 7 * 100);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		pid_t ids[] = { pid };
		struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)ids, .set_tid_size = 1 };
		pid_t again = syscall(SYS_clone3, &args, sizeof args);
		if (!again) {
			lose_fowner(); /* such a one's open of this file would be refused, and rescued */
			usleep(2000);
			_exit(0);
		}
		if (again == pid)
			went_well++;
		if (again > 0)
			waitpid(again, NULL, 0);
		close(ready[0]);
		close(ready[1]);
		if (stat(names[1], &facts) || !facts.st_size)
			secret++;
	}
	return went_well;
}

int main(int argc, char **argv)
{
	pthread_t id, users[4];
	if (argc != 4)
		return 2;
	mode = argv[1], folder = argv[2], opens = atoi(argv[3]);
	snprintf(names[0], sizeof names[0], "%s/files/1", folder);
	snprintf(names[1], sizeof names[1], "%s/files/2", folder);
	strcpy(path, names[0]);
	how.flags = O_RDONLY | O_NOATIME;
	if (!strcmp(mode, "reuse")) {
		int went_well = reuse();
		printf("%d %d %d %d\n", shared, secret, odd, went_well);
		return 0;
	}
	if (!strcmp(mode, "users")) {
		for (long n = 0; n < 4; n++)
			pthread_create(&users[n], NULL, user, (void *)(n & 1));
		for (int n = 0; n < 4; n++)
			pthread_join(users[n], NULL);
		printf("%d %d %d\n", shared, secret, odd);
		return 0;
	}
	if (!strcmp(mode, "jail")) {
		if (chroot(folder) || chdir("/"))
			return 3;
		/* Where this ends in the jail depends on what "a" is; out of it would be "secret". */
		snprintf(path, sizeof path, "/a/deep/../../../../../..%s/files/2", folder);
		folder = "";
	}
	if (be_nobody())
		return 4;
	if (!strcmp(mode, "link"))
		snprintf(path, sizeof path, "%s/link", folder);
	if (!strcmp(mode, "exchange"))
		snprintf(path, sizeof path, "%s/a/inner", folder);
	pthread_create(&id, NULL, change, NULL);
	/* More, as long as it has always been what root alone may read: nobody had a CPU to change it. */
	for (int n = 0; n < opens || (!shared && n < 101 * opens); n++) {
		if (!strcmp(mode, "how"))
			look(syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how), 1);
		else
			look(open(path, O_RDONLY | O_NOATIME), 1);
	}
	done = 1;
	pthread_join(id, NULL);
	printf("%d %d %d\n", shared, secret, odd);
	return 0;
}
