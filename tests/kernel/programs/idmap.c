/* argv: DISK SEEN FOLDER TARGET CMD… As root: runs CMD in a mount namespace of its own where
 * FOLDER is mounted on TARGET with an ID map that shows files of user DISK as those of SEEN
 * (mount_setattr(2), MOUNT_ATTR_IDMAP). TARGET "-" leaves the tree detached, as descriptor 9,
 * and makes no namespace.
 * Exit status 77 if there are no such mounts here.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void write_map(pid_t pid, const char *name, const char *disk, const char *seen)
{
	char path[64], line[64];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
	int fd = open(path, O_WRONLY);
	if (write(fd, line, snprintf(line, sizeof line, "%s %s 1", disk, seen)) < 0)
		_exit(77);
	close(fd);
}

static int namespace_that_maps(const char *disk, const char *seen)
{
	int gate[2];
	char path[64], c;
	if (pipe(gate))
		_exit(77);
	pid_t pid = fork();
	if (pid == 0) {
		if (unshare(CLONE_NEWUSER) || write(gate[1], "x", 1) != 1)
			_exit(77);
		pause();
	}
	close(gate[1]);
	if (read(gate[0], &c, 1) != 1)
		_exit(77);
	close(gate[0]);
	write_map(pid, "uid_map", disk, seen);
	write_map(pid, "gid_map", disk, seen);
	snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return fd;
}

int main(int argc, char **argv)
{
	if (argc < 6)
		return 2;
	struct mount_attr private = { .propagation = 1 << 18 /* MS_PRIVATE */ };
	int mounts = strcmp(argv[4], "-");
	if (mounts && (unshare(CLONE_NEWNS) || syscall(SYS_mount_setattr, AT_FDCWD, "/",
						       AT_RECURSIVE, &private, sizeof private)))
		return 77;
	struct mount_attr mapped = { .attr_set = MOUNT_ATTR_IDMAP };
	mapped.userns_fd = namespace_that_maps(argv[1], argv[2]);
	int tree = syscall(SYS_open_tree, AT_FDCWD, argv[3], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &mapped, sizeof mapped))
		return 77;
	if (mounts) {
		if (syscall(SYS_move_mount, tree, "", AT_FDCWD, argv[4], MOVE_MOUNT_F_EMPTY_PATH))
			return 77;
	} else if (dup2(tree, 9) < 0) {
		return 77;
	}
	execvp(argv[5], argv + 5);
	return 127;
}
