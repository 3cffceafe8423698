/* argv: MODE FILE. The owner of FILE opens it with O_NOATIME and hands the descriptor to a child
 * that runs as nobody: by fork, or over a socket (MODE scm). The child changes flags on it, and
 * after each change the owner looks at what it has. Prints result and flag for each.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void pass(int socket, int fd)
{
	char data = 'x', control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec vector = { &data, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	sendmsg(socket, &message, 0);
}

static int take(int socket)
{
	char data, control[CMSG_SPACE(sizeof(int))];
	struct iovec vector = { &data, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof control };
	int fd = -1;
	if (recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

int main(int argc, char **argv)
{
	static const int changes[] = { O_NOATIME | O_NONBLOCK, O_NOATIME, O_NONBLOCK, O_NOATIME };
	int sockets[2], fd;
	char c = 'x';
	if (argc != 3 || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
		return 2;
	fd = strcmp(argv[1], "scm") ? open(argv[2], O_RDONLY | O_NOATIME) : -1;
	if (fork() == 0) {
		close(sockets[0]);
		if (fd < 0)
			fd = take(sockets[1]);
		if (setuid(65534))
			_exit(2);
		for (unsigned i = 0; i < sizeof changes / sizeof *changes; i++) {
			int result = fcntl(fd, F_SETFL, changes[i]);
			printf("set %o %d\n", changes[i], result ? errno : 0);
			fflush(stdout);
			if (write(sockets[1], &c, 1) != 1 || read(sockets[1], &c, 1) != 1)
				_exit(2);
		}
		_exit(0);
	}
	close(sockets[1]);
	if (fd < 0) {
		fd = open(argv[2], O_RDONLY | O_NOATIME);
		pass(sockets[0], fd);
	}
	while (read(sockets[0], &c, 1) == 1) {
		printf("has %o\n", fcntl(fd, F_GETFL) & (O_NOATIME | O_NONBLOCK));
		fflush(stdout);
		if (write(sockets[0], &c, 1) != 1)
			break;
	}
	return wait(NULL) < 0;
}
