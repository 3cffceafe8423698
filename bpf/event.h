/* SPDX-License-Identifier: GPL-2.0-only
 *
 * What the programs in opens.c tell user space, and what it tells them. Everything that
 * differs from run to run is in a map: the text of a program never does.
 *
 * flagshim/engines/bpf/records.py reads and writes these structures; a test compares its
 * offsets with the ones a compiler gives them.
 */
#ifndef FLAGSHIM_EVENT_H
#define FLAGSHIM_EVENT_H

#define PATH_SIZE 4096 /* PATH_MAX, with its NUL */
#define COMM_SIZE 16   /* TASK_COMM_LEN */
#define PREFIX_SIZE 256 /* the longest key of a BPF_MAP_TYPE_LPM_TRIE, in bytes */
#define ERRNOS 256      /* index 0 is success, the last is all that are higher */

/* The values of flagshim.syscalls.Kind. */
enum call {
	CALL_OPEN = 1,
	CALL_OPENAT = 2,
	CALL_OPENAT2 = 3,
	CALL_OPEN_BY_HANDLE_AT = 4,
	CALL_SETFL = 5,
	CALLS = 6,
};

/* Whether the kernel began the call: seccomp refuses one before its entry tracepoint. */
enum entered {
	ENTERED_UNKNOWN = 0, /* nobody was looking */
	ENTERED_NO = 1,
	ENTERED_YES = 2,
};

struct open_event {
	u64 time_ns; /* CLOCK_MONOTONIC when the call returned */
	u64 flags;   /* as the kernel got them */
	u64 cleared; /* what the rewriter took off them before */
	s64 result;  /* a descriptor, 0, or minus an errno */
	u32 pid;     /* thread group, in the initial PID namespace as tid */
	u32 tid;
	u32 uid;       /* real user ID, in the initial user namespace */
	s32 dirfd;     /* directory, or descriptor of F_SETFL */
	u32 call;      /* enum call */
	u32 entered;   /* enum entered */
	u32 path_size; /* bytes of path with its NUL; 0: there is none, or it was not readable */
	u32 follows;   /* 1: told of only because the thread's last one was refused with EPERM */
	char comm[COMM_SIZE];
	char path[PATH_SIZE]; /* only path_size of it are sent */
};

/* The one entry of the map `settings`. */
struct settings {
	u32 all;          /* every process, whatever is in `watched` and `cgroups` */
	u32 by_cgroup;    /* entry 0 of `cgroups` is a cgroup whose members are watched */
	u32 by_name;      /* of those, only threads whose comm is in `names` */
	u32 marks_entry;  /* the entry tracepoints are attached, and fill `begun` */
	u32 own_pid;      /* flagshim itself, never watched */
	u32 keeper_pid;   /* nor the process that writes its trace */
	u64 flags;        /* only calls with one of these; 0: with any */
	u64 clear;        /* flags to clear on any path */
	u32 by_prefix;    /* `prefixes` has more to clear on some */
	u32 follows;      /* after an EPERM, tell of the thread's next call, too */
};

/* Indexes of the map `misses`: what was not told, and why. */
enum miss {
	MISS_RING_FULL = 0,   /* an event: user space did not keep up */
	MISS_CHILD = 1,       /* a child of a watched process: `watched` is full */
	MISS_PATH = 2,        /* a path that a rule had to be compared with was not in memory */
	MISS_RELATIVE = 3,    /* a path that is relative, and a rule asks for an absolute one */
	MISS_REWRITE = 4,     /* a rewritten call whose result could not be waited for */
	MISS_RETURN = 5,      /* a rewritten call whose return the kernel left out */
	MISSES = 6,
};

struct comm {
	char text[COMM_SIZE];
};

struct descriptor {
	u32 pid;
	s32 fd;
};

struct prefix {
	u32 bits; /* how many of `text` count, as linux/bpf.h has it in bpf_lpm_trie_key */
	char text[PREFIX_SIZE];
};

#endif
