"""Finds what kills nodes, so that innocent requests lose only time. It knows no requests: its subjects are
any hashable keys.

When a node breaks, every subject that it had been given and that had made no progress may be the cause. A
subject to which this has happened `limit` times is a suspect: it is held back from the next node until the
others have made progress, then tried in groups, newest first, of one, two, four, ... subjects. A node that
breaks meanwhile clears the rest; its group is halved and tried again. A subject that is the only candidate
when a node breaks during its trial is guilty.

A death during trials that others (arrivals) may have caused too makes all of them suspects, and arrivals wait
from then on until the trials are over; so whatever arrives in between, in the end some subject is tried
alone.

    arrive ─▶ may go at once, or is held          died ─▶ the guilty one, if it is known now
    sent, progressed, forget ─▶ notes             release ─▶ what is to be sent now
"""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Subject = TypeVar("Subject", bound=Hashable)


class Suspects(Generic[Subject]):
    """Finds the guilty subject; see the module. Subjects are ordered by age, as they were `sent`."""

    def __init__(self, limit: int) -> None:
        """`limit` is the number of nodes that may break over a subject before it is a suspect."""
        self._limit = limit
        self._n_deaths: dict[Subject, int] = {}
        self._unproven: dict[Subject, None] = {}
        """Subjects that the present node was given and that have made no progress there."""
        self._first: set[Subject] = set()
        """Those of them whose progress must be seen before the next trial begins."""
        self._trial: set[Subject] = set()
        self._groups: list[list[Subject]] = []
        """Groups to be tried, the next one last; each is ordered from new to old."""
        self._waiting: list[Subject] = []
        """Subjects that arrived while none may be sent."""
        self._alone = False
        """True if arrivals wait until the trials are over."""
        self.n_hurried = 0
        """Trials that ended without a verdict since a subject was last found guilty."""

    @property
    def trying(self) -> bool:
        """True if a subject is held back or on trial."""
        return bool(self._trial or self._groups or self._waiting)

    @property
    def waited_for(self) -> bool:
        """True if subjects are held back until another one has made progress."""
        return bool(self._trial or (self._first and (self._groups or self._waiting)))

    def is_unproven(self, subject: Subject) -> bool:
        """True if the present node has it and it has made no progress there."""
        return subject in self._unproven

    def holds(self, subject: Subject) -> bool:
        """True if it must not be sent now; `release` returns it later."""
        return subject in self._waiting or any(subject in group for group in self._groups)

    def arrive(self, subject: Subject, *, suspected: bool = False) -> bool:
        """Add a subject. True if it may be sent now. One that is `suspected` from the start is tried
        alone."""
        if suspected:
            self._groups.insert(0, [subject])
            return False
        if self._alone and self.trying:
            self._waiting.append(subject)
            return False
        return True

    def sent(self, subject: Subject, *, first: bool = False) -> None:
        """Note that the node was given it; `first` if it is older than the node: trials wait for it."""
        self._unproven[subject] = None
        if first:
            self._first.add(subject)

    def progressed(self, subject: Subject) -> None:
        """Note that it made progress with the present node: what it did before is forgiven."""
        self._n_deaths.pop(subject, None)
        self._clear(subject)

    def forget(self, subject: Subject) -> None:
        """Forget a subject that has ended."""
        self._n_deaths.pop(subject, None)
        self._clear(subject)
        self._groups = [kept for group in self._groups if (kept := [s for s in group if s != subject])]
        self._waiting = [waiting for waiting in self._waiting if waiting != subject]

    def release(self) -> list[Subject]:
        """Subjects to send now: the next group or, when all have been tried, those that waited. Call
        `sent` for each."""
        if self._trial or self._first:
            return []
        if self._groups:
            group = self._groups.pop()
            self._trial = set(group)
            return group[::-1]
        waiting, self._waiting = self._waiting, []
        self._alone = False
        return waiting

    def hurry(self) -> None:
        """What is on trial, or awaited, takes too long: continue without a verdict."""
        self.n_hurried += 1
        self._trial.clear()
        self._first.clear()

    def spared(self) -> None:
        """The node broke before it had read anything: no subject is to blame."""
        if self._trial:
            self._groups.append([subject for subject in self._unproven if subject in self._trial][::-1])
        self._unproven.clear()
        self._trial.clear()
        self._first.clear()

    def died(self) -> Subject | None:
        """The node broke. Returns the guilty subject, if it is known now. The others may be sent to the
        next node unless held."""
        candidates = list(self._unproven)
        on_trial = [subject for subject in candidates if subject in self._trial]
        was_trying = self.trying
        self._unproven.clear()
        self._first.clear()
        self._trial.clear()
        if on_trial and len(candidates) == 1:
            self.forget(candidates[0])
            self.n_hurried = 0
            return candidates[0]
        for subject in candidates:
            self._n_deaths[subject] = self._n_deaths.get(subject, 0) + 1
        if was_trying:
            others = [subject for subject in candidates if subject not in on_trial]
            self._alone = self._alone or bool(others)
            self._try(others)
            half = (len(on_trial) + 1) // 2
            # From old to new; what is appended last is tried first.
            self._groups += [group[::-1] for group in (on_trial[:-half], on_trial[-half:]) if group]
        else:
            self._try(s for s in candidates if self._n_deaths[s] >= self._limit)
        return None

    def _try(self, subjects: Iterable[Subject]) -> None:
        """Put them, from old to new, into groups of 1, 2, 4, ..., the newest to be tried first."""
        left = list(subjects)[::-1]
        groups: list[list[Subject]] = []
        while left:
            n = 1 << len(groups)
            groups.append(left[:n])
            left = left[n:]
        self._groups += groups[::-1]

    def _clear(self, subject: Subject) -> None:
        self._unproven.pop(subject, None)
        self._first.discard(subject)
        self._trial.discard(subject)
