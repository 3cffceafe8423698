"""Test suites of other programs, run natively and under flagshim, test by test.

    make test-suites                      # installs the packages it needs, runs all, an hour
    python -m tests.suites go coreutils   # only these

Each suite is run as nobody, once natively and once by `flagshim run -u nobody --except …` (its
tests of gdb and strace need that: two tracers of one process cannot be). Tests that ended
differently are run again by themselves, both ways, some times: what then ends differently
natively, too, or the same way under flagshim at least once, is called unsteady, as a suite of
thousands of tests with timeouts has a few of them; a test that skips itself because it finds a
tracer declines; the rest is a difference, and the exit status is 1. The table goes to standard
output, progress to standard error.
"""
