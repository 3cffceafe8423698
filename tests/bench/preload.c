/* What flagshim is compared with: an LD_PRELOAD shim that asks again without O_NOATIME where
 * the kernel refused it. It writes nothing down, and sees only calls made through libc's own
 * dynamic symbols.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/types.h>

typedef int open_function(const char *, int, ...);
typedef int openat_function(int, const char *, int, ...);
typedef int fcntl_function(int, int, ...);

static open_function *next_open, *next_open64;
static openat_function *next_openat, *next_openat64;
static fcntl_function *next_fcntl, *next_fcntl64;

__attribute__((constructor)) static void find(void)
{
	next_open = (open_function *)dlsym(RTLD_NEXT, "open");
	next_open64 = (open_function *)dlsym(RTLD_NEXT, "open64");
	next_openat = (openat_function *)dlsym(RTLD_NEXT, "openat");
	next_openat64 = (openat_function *)dlsym(RTLD_NEXT, "openat64");
	next_fcntl = (fcntl_function *)dlsym(RTLD_NEXT, "fcntl");
	next_fcntl64 = (fcntl_function *)dlsym(RTLD_NEXT, "fcntl64");
}

/* A constructor of another library may open files before ours has run. */
#define NEXT(name) (next_##name ? next_##name : (find(), next_##name))

#define REFUSED(result, flags) ((result) < 0 && errno == EPERM && ((flags) & O_NOATIME))

static mode_t mode_of(int flags, va_list *arguments)
{
	/* O_TMPFILE contains O_DIRECTORY. */
	if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE)
		return va_arg(*arguments, mode_t);
	return 0;
}

#define OPEN(name)                                                              \
	int name(const char *path, int flags, ...)                              \
	{                                                                       \
		va_list arguments;                                              \
		va_start(arguments, flags);                                     \
		mode_t mode = mode_of(flags, &arguments);                       \
		va_end(arguments);                                              \
		int fd = NEXT(name)(path, flags, mode);                         \
		if (REFUSED(fd, flags))                                         \
			fd = NEXT(name)(path, flags & ~O_NOATIME, mode);        \
		return fd;                                                      \
	}

#define OPENAT(name)                                                            \
	int name(int dirfd, const char *path, int flags, ...)                   \
	{                                                                       \
		va_list arguments;                                              \
		va_start(arguments, flags);                                     \
		mode_t mode = mode_of(flags, &arguments);                       \
		va_end(arguments);                                              \
		int fd = NEXT(name)(dirfd, path, flags, mode);                  \
		if (REFUSED(fd, flags))                                         \
			fd = NEXT(name)(dirfd, path, flags & ~O_NOATIME, mode); \
		return fd;                                                      \
	}

/* Whatever the third argument is, it came in a register, and is handed on as it came. */
#define FCNTL(name)                                                             \
	int name(int fd, int command, ...)                                      \
	{                                                                       \
		va_list arguments;                                              \
		va_start(arguments, command);                                   \
		long value = va_arg(arguments, long);                           \
		va_end(arguments);                                              \
		int result = NEXT(name)(fd, command, value);                    \
		if (command == F_SETFL && REFUSED(result, value))               \
			result = NEXT(name)(fd, command, value & ~O_NOATIME);   \
		return result;                                                  \
	}

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FCNTL(fcntl)
FCNTL(fcntl64)
