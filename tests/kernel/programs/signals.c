/* argv: MODE. What signals do, printed so that two runs can be compared line by line. By raw
 * system calls, because libc keeps 32 and 33 for itself.
 *   actions   each of 1 to 64 by its default action, as the parent of a child sees it
 *   senders   each of 1 to 64 by kill, tgkill, rt_sigqueueinfo and a timer, with its siginfo
 *   queue     33 to 64, seven values each, queued while blocked: order, number and values;
 *             each handler runs to its end, and then again with handlers on top of each other
 *   faults    those the processor raises, and what siginfo says of them
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct kernel_action {
	void (*handler)(int, siginfo_t *, void *);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};

void restorer(void);
__asm__("restorer: mov $15, %eax\n syscall\n"); /* rt_sigreturn */

static const uint64_t ALL = ~0UL, NONE = 0;

static long act(int number, void (*handler)(int, siginfo_t *, void *), uint64_t mask)
{
	struct kernel_action action = { handler, SA_SIGINFO | 0x04000000, restorer, mask };
	return syscall(SYS_rt_sigaction, number, &action, NULL, 8);
}

static void mask(uint64_t signals)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &signals, NULL, 8);
}

static long queue(int number, long value)
{
	siginfo_t info = { .si_signo = number, .si_code = SI_QUEUE };
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_ptr = (void *)value;
	return syscall(SYS_rt_sigqueueinfo, getpid(), number, &info);
}

static struct { int number, code, mine; long value; } seen[1009];
static volatile int count;

static void note(int number, siginfo_t *info, void *context)
{
	(void)context;
	seen[count].number = number;
	seen[count].code = info->si_code;
	seen[count].mine = info->si_code == SI_TIMER || (info->si_pid == getpid() && info->si_uid == getuid());
	seen[count].value = info->si_code == SI_USER || info->si_code == SI_TKILL ? 0 : (long)info->si_value.sival_ptr;
	count++;
}

static void print_seen(void)
{
	for (int i = 0; i < count; i++)
		printf("%d %d %d %lx\n", seen[i].number, seen[i].code, seen[i].mine, seen[i].value);
	count = 0;
}

static void actions(void)
{
	struct rlimit no_core = { 0, 0 };
	setrlimit(RLIMIT_CORE, &no_core);
	for (int number = 1; number <= 64; number++) {
		int status, gate[2];
		char c;
		if (pipe(gate))
			_exit(2);
		pid_t pid = fork();
		if (pid == 0) {
			setpgid(0, 0); /* not orphaned: a terminal's stop signals do stop it */
			syscall(SYS_tgkill, getpid(), getpid(), number);
			close(gate[1]);
			if (number >= SIGSTOP && number <= SIGTTOU && read(gate[0], &c, 1))
				_exit(2);
			_exit(7);
		}
		waitpid(pid, &status, WUNTRACED);
		printf("%d %x\n", number, status);
		if (WIFSTOPPED(status)) {
			kill(pid, SIGCONT);
			waitpid(pid, &status, WCONTINUED);
			printf("%d %x\n", number, status);
			close(gate[1]);
			waitpid(pid, &status, 0);
			printf("%d %x\n", number, status);
		}
		close(gate[0]);
		close(gate[1]);
	}
}

static void senders(void)
{
	for (int number = 1; number <= 64; number++) {
		if (act(number, note, ALL)) {
			printf("%d errno %d\n", number, errno);
			continue;
		}
		kill(getpid(), number);
		syscall(SYS_tgkill, getpid(), gettid(), number);
		queue(number, 0x1000000000000L + number);
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = number };
		event.sigev_value.sival_ptr = (void *)0x5eaL;
		struct itimerspec soon = { { 0, 0 }, { 0, 1 } };
		int timer, before = count;
		syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer);
		syscall(SYS_timer_settime, timer, 0, &soon, NULL);
		while (count == before)
			;
		syscall(SYS_timer_delete, timer);
		print_seen();
	}
}

static void queues(void)
{
	for (int nested = 0; nested < 2; nested++) {
		for (int number = 33; number <= 64; number++)
			act(number, note, nested ? NONE : ALL);
		act(SIGUSR1, note, nested ? NONE : ALL);
		mask(ALL);
		for (long value = 1; value <= 7; value++) {
			for (int number = 64; number >= 33; number--)
				queue(number, value * 1009 + number);
			queue(SIGUSR1, value); /* of these only the first is kept */
		}
		mask(NONE);
		printf("nested %d count %d\n", nested, count);
		print_seen();
	}
}

static sigjmp_buf out;
static char *page;

static void fault(int number, siginfo_t *info, void *context)
{
	ucontext_t *at = context;
	printf("signal %d code %d errno %d at the page %d ip %d\n", number, info->si_code, info->si_errno,
	       info->si_addr == page, (greg_t)info->si_addr == at->uc_mcontext.gregs[REG_RIP]);
	if (number == SIGSYS)
		printf("call %d\n", info->si_syscall);
	siglongjmp(out, 1);
}

#define TRY(statement) do { if (!sigsetjmp(out, 1)) { statement; puts("nothing"); } } while (0)

static void faults(void)
{
	int numbers[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS }, memory = memfd_create("m", 0);
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP | 11),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
		act(numbers[i], fault, 0);
	page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TRY(*(volatile char *)page);
	page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, memory, 0);
	TRY(*(volatile char *)page);
	volatile int one = 1, zero = 0;
	TRY(one /= zero);
	TRY(__asm__ volatile("ud2"));
	TRY(__asm__ volatile("int3"));
	/* The trap flag: a program that steps through itself. */
	TRY(__asm__ volatile("pushf; orl $0x100, (%%rsp); popf; nop; nop" ::: "memory", "cc"));
	TRY(__asm__ volatile("syscall" :: "a"(-1L) : "rcx", "r11", "memory"));
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
	TRY(syscall(SYS_getppid));
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc != 2)
		return 2;
	if (!strcmp(argv[1], "actions"))
		actions();
	else if (!strcmp(argv[1], "senders"))
		senders();
	else if (!strcmp(argv[1], "queue"))
		queues();
	else
		faults();
	return 0;
}
