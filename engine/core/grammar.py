"""A grammar that the output of a request obeys, in the form in which processes pass it on."""

import hashlib
from typing import NamedTuple


class Grammar(NamedTuple):
    """`source` is what the library that computes masks compiles (`tokenmux.models.grammar`); `id` is its
    digest, so that requests of one schema share what is compiled."""

    id: str
    source: str

    @classmethod
    def of(cls, source: str) -> "Grammar":
        """
        >>> Grammar.of("start: /[0-9]+/").id == Grammar.of("start: /[0-9]+/").id
        True
        """
        return cls(hashlib.sha256(source.encode()).hexdigest()[:24], source)
