"""QEMU guests that mount overlayfs on a 9p share, with and without flagshim."""
