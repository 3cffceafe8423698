/* argv: MODE FOLDER. As root: finds itself somewhere else, becomes nobody, and opens a file of
 * root's there with O_NOATIME, and one that is not there, by absolute paths and by relative ones.
 *   pivot    a tmpfs of its own, by pivot_root(2)
 *   mount    a tmpfs of its own, mounted on FOLDER in a mount namespace of its own
 *   chroot   FOLDER
 *   lazy     a tmpfs on FOLDER that is unmounted under its feet; only the relative ones
 * The folder has a file "inner" in a folder "inside". Prints what came of each.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void try(const char *path)
{
	char content[8] = "";
	int fd = open(path, O_RDONLY | O_NOATIME);
	if (fd < 0)
		printf("errno %d\n", errno);
	else
		printf("noatime %d %zd\n", !!(fcntl(fd, F_GETFL) & O_NOATIME), read(fd, content, 8));
}

static int fill(void)
{
	int fd;
	mkdir("inside", 0755);
	fd = open("inside/inner", O_WRONLY | O_CREAT, 0644);
	return fd < 0 || write(fd, "x", 1) != 1 || close(fd);
}

int main(int argc, char **argv)
{
	char absolute[4096] = "/inside", *end;
	if (argc != 3)
		return 2;
	if (strcmp(argv[1], "chroot")) {
		if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)
		    || mount("tmpfs", argv[2], "tmpfs", 0, "mode=755"))
			return 77;
	}
	if (chdir(argv[2]) || fill())
		return 3;
	if (!strcmp(argv[1], "pivot")) {
		if (mkdir("old", 0700) || syscall(SYS_pivot_root, ".", "old") || chdir("/")
		    || umount2("old", MNT_DETACH))
			return 4;
	} else if (!strcmp(argv[1], "chroot")) {
		if (chroot("."))
			return 4;
	} else {
		snprintf(absolute, sizeof absolute, "%s/inside", argv[2]);
		if (!strcmp(argv[1], "lazy") && umount2(argv[2], MNT_DETACH))
			return 4;
	}
	if (setuid(65534))
		return 5;
	if (strcmp(argv[1], "lazy")) {
		end = absolute + strlen(absolute);
		strcpy(end, "/inner");
		try(absolute);
		strcpy(end, "/absent");
		try(absolute);
	}
	if (chdir("inside"))
		return 6;
	try("inner");
	try("absent");
	return 0;
}
