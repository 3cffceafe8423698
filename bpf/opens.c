// SPDX-License-Identifier: GPL-2.0-only
/*
 * Opens as they return, told to user space; and, at the entry of libc's functions, flags
 * taken off them. Compiled and loaded by bcc, which turns map.lookup() and the like into
 * helper calls; it does so in this file only, not in headers.
 *
 * The arguments of a call are read when it returns, out of the registers it was made with:
 * the kernel has just read path and struct open_how itself, so their pages are there, and a
 * call that is of no interest costs one lookup. The entry tracepoints do no more than
 * leave a mark. Structures of the kernel are left alone, but for struct pt_regs: the headers
 * this is compiled with may be those of another kernel.
 *
 * Linux 7.3 runs the programs at syscall tracepoints and uprobes with preemption on. The former
 * it leaves out where the same program was preempted on that CPU; it counts that, and user
 * space asks it. Memory per CPU is shared with whatever else runs there in between: each
 * program at a tracepoint has its own, those at uprobes have none.
 *
 * Not seen: calls of 32-bit programs, which the syscall tracepoints leave out on x86
 * (ARCH_TRACE_IGNORE_COMPAT_SYSCALLS), and opens by io_uring, which are no calls.
 */
#include <uapi/linux/ptrace.h>
#include <uapi/linux/errno.h>
#include <uapi/linux/fcntl.h>
#include <uapi/linux/sched.h>
#include "event.h"

#define RESTARTED_FIRST 512 /* ERESTARTSYS to ERESTART_RESTARTBLOCK, include/linux/errno.h */
#define RESTARTED_LAST 516

/* Records of events/syscalls/ in tracefs; bcc makes up the others from what it finds there. */
struct enter_record {
	u64 common;
	s64 number;
	u64 arguments[6];
};
struct exit_record {
	u64 common;
	s64 number;
	s64 result;
};

BPF_ARRAY(settings, struct settings, 1);
BPF_HASH(watched, u32, u32, 65536);             /* thread groups */
BPF_CGROUP_ARRAY(cgroups, 1);
BPF_HASH(names, struct comm, u32, 64);
BPF_ARRAY(wanted, u32, ERRNOS);                 /* by errno: tell of calls that end so */
BPF_PERCPU_ARRAY(returned, u64, ERRNOS);        /* by errno: how many calls ended so */
BPF_PERCPU_ARRAY(misses, u64, MISSES);
BPF_PERCPU_ARRAY(scratch, struct open_event, CALLS); /* by enum call */
BPF_TABLE("lru_hash", u32, u32, begun, 16384);  /* threads in a call, by tid */
BPF_TABLE("lru_hash", u32, u32, refused, 16384); /* threads whose last call was, by tid */
BPF_RINGBUF_OUTPUT(events, 4096);               /* pages: 16 MiB */

/* Of the rewriter. */
BPF_HASH(changed, u32, u64, 16384);             /* by tid: what was taken off */
BPF_TABLE("lru_hash", struct descriptor, u64, ours, 16384);
BPF_LPM_TRIE(prefixes, struct prefix, u64, 64); /* what to take off below a folder */

static __always_inline void miss(u32 why)
{
	u64 *count = misses.lookup(&why);
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline struct settings *settings_if_watched(void)
{
	u32 zero = 0, pid = bpf_get_current_pid_tgid() >> 32;
	struct settings *set = settings.lookup(&zero);

	if (!set || pid == set->own_pid || pid == set->keeper_pid)
		return 0;
	if (!set->all && !watched.lookup(&pid) &&
	    !(set->by_cgroup && cgroups.check_current_task(0) == 1))
		return 0;
	if (set->by_name) {
		struct comm name = {};
		bpf_get_current_comm(&name, sizeof(name));
		if (!names.lookup(&name))
			return 0;
	}
	return set;
}

/* --- what comes of a process: task_newtask runs in the parent, before the child does ---- */

int task_new(struct tracepoint__task__task_newtask *record)
{
	u32 parent = bpf_get_current_pid_tgid() >> 32, child = record->pid, yes = 1;

	if (record->clone_flags & CLONE_THREAD || !watched.lookup(&parent))
		return 0;
	if (watched.update(&child, &yes))
		miss(MISS_CHILD);
	return 0;
}

/* Not sched_process_exit: a leader that exits first leaves its ID to the threads. */
int task_free(struct tracepoint__sched__sched_process_free *record)
{
	u32 tid = record->pid;

	watched.delete(&tid);
	changed.delete(&tid);
	return 0;
}

/* --- calls ------------------------------------------------------------------------------ */

int call_enter(struct enter_record *record)
{
	u32 tid = bpf_get_current_pid_tgid(), number = record->number;

	if (settings_if_watched())
		begun.update(&tid, &number);
	return 0;
}

static __always_inline int call_exit(struct exit_record *record, u32 call)
{
	struct settings *set = settings_if_watched();
	u32 tid = bpf_get_current_pid_tgid(), entered = ENTERED_UNKNOWN;
	s64 result = record->result;
	u64 flags, cleared = 0;
	u64 dirfd, path;

	if (!set)
		return 0;
	if (set->marks_entry) {
		entered = begun.lookup(&tid) ? ENTERED_YES : ENTERED_NO;
		begun.delete(&tid);
	}
	if (result <= -RESTARTED_FIRST && result >= -RESTARTED_LAST)
		return 0; /* it is made again, and will return once more */
	u32 outcome = result >= 0 ? 0 : result > -ERRNOS ? -result : ERRNOS - 1;

	struct pt_regs regs = {};
	if (call == CALL_SETFL || set->flags || set->clear || set->by_prefix)
		bpf_probe_read_kernel(&regs, sizeof(regs),
				      (void *)bpf_task_pt_regs(bpf_get_current_task_btf()));
	if (call == CALL_SETFL && (u32)regs.si != F_SETFL)
		return 0;
	u64 *count = returned.lookup(&outcome);
	if (count)
		__sync_fetch_and_add(count, 1);

	u64 *change = changed.lookup(&tid);
	if (change) {
		cleared = *change;
		changed.delete(&tid);
	}
	if (set->by_prefix && call != CALL_SETFL && result >= 0) {
		struct descriptor opened = {.pid = bpf_get_current_pid_tgid() >> 32, .fd = result};
		if (cleared)
			ours.update(&opened, &cleared);
		else
			ours.delete(&opened); /* another file's now */
	}
	u32 *tell = wanted.lookup(&outcome), follows = 0, yes = 1;
	bool is_wanted = tell && *tell;
	if (set->follows) {
		if (refused.lookup(&tid)) {
			follows = !is_wanted;
			refused.delete(&tid);
		}
		if (result == -EPERM)
			refused.update(&tid, &yes);
	}
	if (!is_wanted && !follows)
		return 0;
	if (!regs.orig_ax)
		bpf_probe_read_kernel(&regs, sizeof(regs),
				      (void *)bpf_task_pt_regs(bpf_get_current_task_btf()));

	switch (call) {
	case CALL_OPEN:
		dirfd = AT_FDCWD, path = regs.di, flags = (u32)regs.si;
		break;
	case CALL_OPENAT2:
		dirfd = regs.di, path = regs.si, flags = 0;
		bpf_probe_read_user(&flags, sizeof(flags), (void *)regs.dx);
		break;
	case CALL_OPENAT:
		dirfd = regs.di, path = regs.si, flags = (u32)regs.dx;
		break;
	default: /* a handle, or a descriptor */
		dirfd = regs.di, path = 0, flags = (u32)regs.dx;
	}
	if (set->flags && !((flags | cleared) & set->flags))
		return 0;

	struct open_event *event = scratch.lookup(&call);
	if (!event)
		return 0;
	u64 ids = bpf_get_current_pid_tgid();
	event->time_ns = bpf_ktime_get_ns();
	event->flags = flags;
	event->cleared = cleared;
	event->result = result;
	event->pid = ids >> 32;
	event->tid = ids;
	event->uid = bpf_get_current_uid_gid();
	event->dirfd = dirfd;
	event->call = call;
	event->entered = entered;
	event->follows = follows;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	u64 size = path ? bpf_probe_read_user_str(event->path, PATH_SIZE, (void *)path) : 0;
	asm volatile("" : "+r"(size)); /* keep the compiler from comparing a copy of it */
	if (size > PATH_SIZE) /* an error, too */
		size = 0;
	event->path_size = size;
	if (events.ringbuf_output(event, offsetof(struct open_event, path) + size, 0))
		miss(MISS_RING_FULL);
	return 0;
}

int open_exit(struct exit_record *record) { return call_exit(record, CALL_OPEN); }
int openat_exit(struct exit_record *record) { return call_exit(record, CALL_OPENAT); }
int openat2_exit(struct exit_record *record) { return call_exit(record, CALL_OPENAT2); }
int handle_exit(struct exit_record *record) { return call_exit(record, CALL_OPEN_BY_HANDLE_AT); }
int fcntl_exit(struct exit_record *record) { return call_exit(record, CALL_SETFL); }

/* --- rewriting: uprobes at the first instruction of libc's functions ---------------------- */

/* Have `clear` taken off, and remember it until the call returns. */
static __always_inline u64 remembered(u64 clear)
{
	u32 tid = bpf_get_current_pid_tgid();

	if (!clear)
		return 0;
	if (changed.lookup(&tid)) /* the return of its last call was left out */
		miss(MISS_RETURN);
	if (changed.update(&tid, &clear))
		miss(MISS_REWRITE);
	return clear;
}

static __always_inline u64 to_clear(u64 flags, const char *path)
{
	struct settings *set = settings_if_watched();
	u64 clear;

	if (!set || !(flags & set->flags) || flags & O_PATH)
		return 0;
	clear = set->clear;
	if (set->by_prefix && flags & set->flags & ~clear) {
		struct prefix key;
		s64 size = bpf_probe_read_user_str(key.text, PREFIX_SIZE, path);
		if (size <= 0) {
			miss(MISS_PATH);
		} else if (key.text[0] != '/') {
			miss(MISS_RELATIVE);
		} else {
			/* What is left behind the NUL does no harm: no prefix has one but at its end. */
			key.bits = PREFIX_SIZE * 8;
			u64 *more = prefixes.lookup(&key);
			if (more)
				clear |= *more;
		}
	}
	return remembered(clear & flags);
}

int libc_openat(struct pt_regs *regs)
{
	u64 flags = regs->dx, clear = to_clear((u32)flags, (const char *)regs->si);

	if (clear)
		regs->dx = flags & ~clear;
	return 0;
}

int libc_open(struct pt_regs *regs)
{
	u64 flags = regs->si, clear = to_clear((u32)flags, (const char *)regs->di);

	if (clear)
		regs->si = flags & ~clear;
	return 0;
}

int libc_fcntl(struct pt_regs *regs)
{
	struct settings *set;
	u64 flags = regs->dx, clear;

	if ((u32)regs->si != F_SETFL)
		return 0;
	set = settings_if_watched();
	if (!set)
		return 0;
	clear = set->clear;
	if (set->by_prefix) { /* it goes with the open that made the descriptor */
		struct descriptor opened = {.pid = bpf_get_current_pid_tgid() >> 32, .fd = regs->di};
		u64 *taken = ours.lookup(&opened);
		if (taken)
			clear |= *taken;
	}
	clear = remembered(clear & (u32)flags);
	if (clear)
		regs->dx = flags & ~clear;
	return 0;
}
