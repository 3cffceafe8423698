"""`make bench`: what flagshim costs, beside running alone, LD_PRELOAD and strace."""
