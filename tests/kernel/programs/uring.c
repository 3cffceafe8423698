/* Sets up an io_uring; exit status 3 where it may not. */
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	struct io_uring_params parameters = { 0 };
	return syscall(SYS_io_uring_setup, 4, &parameters) < 0 ? 3 : 0;
}
