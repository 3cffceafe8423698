// SPDX-License-Identifier: GPL-2.0-only
/* Loads only where a program at a uprobe may write registers (Linux 7.3 does, 6.18 does not). */
#include <uapi/linux/ptrace.h>

int writes_register(struct pt_regs *regs)
{
	regs->dx &= ~1UL;
	return 0;
}
