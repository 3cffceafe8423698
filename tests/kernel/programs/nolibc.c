/* A program without libc: opens the file it is told with O_NOATIME; exit status 0 if it could. */
static long call3(long nr, long a, long b, long c)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "0"(nr), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}

__attribute__((used)) void begin(long *stack)
{
	long fd = call3(2, stack[2], 01000000, 0); /* open, O_NOATIME */
	call3(60, fd < 0, 0, 0);                   /* exit */
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
