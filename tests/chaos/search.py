"""Run worlds of many seeds, or replay one: `python -m tests.chaos.search --seed 17`."""

import argparse
import logging
import signal
import time
import traceback
from collections import Counter

from tests.chaos.world import World

LONGEST_S = 20.0
"""A world that takes longer goes round in circles."""


def _stuck(*_: object) -> None:
    raise AssertionError(f"it goes round in circles for {LONGEST_S:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, and say what happened")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seconds", type=float, default=60.0, help="search this long")
    parser.add_argument("--faults", type=int, default=5, help="stop after this many faults")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        logging.basicConfig(level=logging.INFO)
        world = World(arguments.seed)
        try:
            print(world.run())
        finally:
            print(world.chances, world.setups, world.host, sep="\n")
            print(*world.notes, sep="\n")
        return
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _stuck)
    began_s, seed, n_faults = time.monotonic(), arguments.first, 0
    counts: Counter[str] = Counter()
    while time.monotonic() < began_s + arguments.seconds and n_faults < arguments.faults:
        world = World(seed)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
        try:
            counts.update(world.run())
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            n_faults += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
            print(f"seed {seed}: {type(error).__name__} at {where}: {str(error)[:400]}", flush=True)
        seed += 1
    n, seconds = seed - arguments.first, time.monotonic() - began_s
    print(f"{n} seeds in {seconds:.0f} s: {60 * n / seconds:.0f} a minute; {n_faults} faults")
    print(dict(sorted(counts.items())))


if __name__ == "__main__":
    main()
