"""What flagshim asks of the kernel and libc that Python does not offer."""
