"""An index of words."""

from __future__ import annotations

import re
from collections import defaultdict


class Base:
    """What every index has."""

    def describe(self) -> str:
        """Its kind, for people."""
        return type(self).__name__


class Index(Base):
    """Which sentences have a word."""

    def __init__(self) -> None:
        self.by_word: dict[str, set[int]] = defaultdict(set)

    @classmethod
    def empty(cls) -> Index:
        """A new one."""
        return cls()

    @staticmethod
    def words(sentence: str) -> list[str]:
        """The words of a sentence, in lower case."""
        return re.findall(r"[a-z']+", sentence.lower())

    def add(self, number: int, sentence: str) -> int:
        """Adds a sentence; how many words it has.

        Raises:
            ValueError: it has none.
        """
        words = self.words(sentence)
        if not words:
            raise ValueError("a sentence without words")
        for word in words:
            self.by_word[word].add(number)
        return len(words)

    @property
    def size(self) -> int:
        """How many words there are."""
        return len(self.by_word)

    class Statistics:
        """Figures of an index."""

        def longest(self, index: Index) -> str:
            """The longest word."""
            return max(index.by_word, key=lambda word: (len(word), word))


shared = Index()
