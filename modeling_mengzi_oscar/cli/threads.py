"""How torch's threads wait for one another, said before torch is loaded."""

import os


def sleep_soon():
    """Threads without work spin for about 0.1 ms and then sleep.

    By itself GCC's OpenMP, which torch has on Linux, spins for 4 ms: where another program wants the cores, that is
    time taken from everybody, and each of a model's many small products waits like that. docs/speed.md has numbers.
    Who sets OMP_WAIT_POLICY or GOMP_SPINCOUNT is obeyed.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
