"""How long the tests run that show more the longer they run: kills, races, load.

Full with `CHECKPOINTER_TEST_FULL=1 make test-long`, which takes most of an hour on two cores; short
otherwise.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """The figures of one run, each for one database.

    Attributes:
        kills: How many writing processes are killed.
        race_seconds: How long processes race on the same threads.
        shared_file_seconds: How long eight processes write one SQLite file.
        verify_seconds: How long a store is verified that another process writes to.
        fuzz_runs: How many inputs a fuzzer makes up; it needs no database.
        each_way: Whether tasks are cancelled at each await point in each way, and not in one only.
        timeouts: How often each operation runs into a timeout.
    """

    kills: int
    race_seconds: float
    shared_file_seconds: float
    verify_seconds: float
    fuzz_runs: int
    each_way: bool
    timeouts: int


FULL = Intensity(
    kills=200,
    race_seconds=60,
    shared_file_seconds=30,
    verify_seconds=15,
    fuzz_runs=30_000,
    each_way=True,
    timeouts=25,
)
SHORT = Intensity(
    kills=15,
    race_seconds=6,
    shared_file_seconds=5,
    verify_seconds=2,
    fuzz_runs=5_000,
    each_way=False,
    timeouts=6,
)

FULL_VARIABLE = "CHECKPOINTER_TEST_FULL"

INTENSITY = FULL if os.environ.get(FULL_VARIABLE) == "1" else SHORT
