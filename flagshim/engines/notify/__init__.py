"""The notify engine: calls held by a seccomp listener, and answered (seccomp_unotify(2))."""
