"""flagshim: run an unchanged program with the open flags the kernel would refuse cleared."""

__version__ = "0.1.0"
