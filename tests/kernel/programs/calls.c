/* Makes every call that carries O_NOATIME on argv[1], without libc's wrappers, and prints
 * a line for each: name, result (or minus the errno), the open flags the description has then
 * (octal, -1 if none), and "touched" if a register or struct open_how is not what it was.
 *
 * As a 32-bit program, or a 64-bit one with -DINT80, it enters by int $0x80. With -DHIDDEN it is
 * not dumpable: nobody but root may look into it, ptrace(2).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#if defined(INT80) || defined(__i386__)
enum { NR_open = 5, NR_fcntl = 55, NR_fcntl64 = 221, NR_openat = 295, NR_openat2 = 437 };
#else
enum { NR_open = 2, NR_fcntl = 72, NR_openat = 257, NR_openat2 = 437 };
#endif

static int touched;

static long enter(long nr, long a, long b, long c, long d)
{
	long result, b_after = b, c_after = c;
#if defined(INT80) || defined(__i386__)
	long d_after = d;
	__asm__ volatile("int $0x80" : "=a"(result), "+c"(b_after), "+d"(c_after), "+S"(d_after)
			 : "0"(nr), "b"(a) : "memory"
#ifdef __x86_64__
			 , "r8", "r9", "r10", "r11"
#endif
	);
#else
	register long d_after __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(result), "+S"(b_after), "+d"(c_after), "+r"(d_after)
			 : "0"(nr), "D"(a) : "rcx", "r11", "memory");
#endif
	touched = b_after != b || c_after != c || d_after != d;
	return result;
}

static void report(const char *name, long result, int fd)
{
	printf("%s %ld %o %s\n", name, result, fd < 0 ? -1 : fcntl(fd, F_GETFL),
	       touched ? "touched" : "whole");
}

int main(int argc, char **argv)
{
	/* Arguments of int $0x80 have 32 bits: keep what they point to below 4 GiB. */
	char *low = mmap((void *)0x10000000, 8192, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (argc != 2 || low == MAP_FAILED)
		return 2;
	strcpy(low, argv[1]);
	struct open_how *how = (void *)(low + 4096), before;
	long fd;
#ifdef HIDDEN
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif

	fd = enter(NR_open, (long)low, O_RDONLY | O_NOATIME, 0, 0);
	report("open", fd, fd);
	fd = enter(NR_openat, AT_FDCWD, (long)low, O_RDONLY | O_NOATIME, 0);
	report("openat", fd, fd);

	memset(how, 0, sizeof *how);
	how->flags = O_RDONLY | O_NOATIME;
	before = *how;
	fd = enter(NR_openat2, AT_FDCWD, (long)low, (long)how, sizeof *how);
	touched |= memcmp(how, &before, sizeof before) != 0;
	report("openat2", fd, fd);

	mprotect(low + 4096, 4096, PROT_READ);
	fd = enter(NR_openat2, AT_FDCWD, (long)low, (long)how, sizeof *how);
	touched |= memcmp(how, &before, sizeof before) != 0;
	report("openat2-readonly", fd, fd);
	mprotect(low + 4096, 4096, PROT_READ | PROT_WRITE);

	how->flags |= O_PATH;
	report("openat2-path", enter(NR_openat2, AT_FDCWD, (long)low, (long)how, sizeof *how), -1);
	fd = enter(NR_openat, AT_FDCWD, (long)low, O_PATH | O_NOATIME, 0);
	report("openat-path", fd, fd);

	fd = open(argv[1], O_RDONLY);
	report("setfl", enter(NR_fcntl, fd, F_SETFL, O_RDONLY | O_NOATIME, 0), fd);
#if defined(INT80) || defined(__i386__)
	fd = open(argv[1], O_RDONLY);
	report("setfl64", enter(NR_fcntl64, fd, F_SETFL, O_RDONLY | O_NOATIME, 0), fd);
#endif
	return 0;
}
