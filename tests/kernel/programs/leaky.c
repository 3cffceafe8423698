/* argv: FILE. Opens FILE with O_NOATIME, and loses some memory, for LeakSanitizer to find. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	void *volatile lost = malloc(1009);
	lost = NULL;
	return argc == 2 ? open(argv[1], O_RDONLY | O_NOATIME) < -1 : 2;
}
