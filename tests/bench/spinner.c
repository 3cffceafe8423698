/* argv: SECONDS. Keeps a CPU busy until then, or until its parent is gone. */
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(argc == 2 ? atoi(argv[1]) : 1);
	for (;;)
		__asm__ volatile("");
}
