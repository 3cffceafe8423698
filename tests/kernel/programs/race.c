/* argv: MODE FILE OPENS. Opens FILE by openat2 OPENS times from one struct open_how while another
 * thread writes to it.
 *   other   it turns O_CLOEXEC on and off: every open is to succeed
 *   flag    it turns O_NOATIME itself on and off: natively some are refused, some not
 * Prints how many opens failed, how many gave a descriptor with O_NOATIME, and how often the
 * other thread found something that it had not written.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct { _Atomic unsigned long flags, mode, resolve; } how;
static unsigned long toggled;
static atomic_int done;
static long foreign;

static void *write_it(void *unused)
{
	unsigned long mine = how.flags;
	while (!done) {
		foreign += how.flags != mine || how.mode || how.resolve;
		how.flags = mine = mine ^ toggled;
	}
	return unused;
}

int main(int argc, char **argv)
{
	int failed = 0, noatime = 0;
	pthread_t id;
	if (argc != 4)
		return 2;
	how.flags = O_RDONLY | O_NOATIME;
	toggled = strcmp(argv[1], "flag") ? O_CLOEXEC : O_NOATIME;
	pthread_create(&id, NULL, write_it, NULL);
	for (int opens = atoi(argv[3]); opens > 0; opens--) {
		int fd = syscall(SYS_openat2, AT_FDCWD, argv[2], &how, sizeof how);
		failed += fd < 0;
		noatime += fd >= 0 && fcntl(fd, F_GETFL) & O_NOATIME;
		close(fd);
	}
	done = 1;
	pthread_join(id, NULL);
	printf("failed %d noatime %d foreign %ld\n", failed, noatime, foreign);
	return 0;
}
