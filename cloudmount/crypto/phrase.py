"""Recovery phrases: 24 words of the BIP-39 English list, 256 random bits and 8 of checksum.

Decided here and only here: how people's typing of a phrase is read (case, spaces,
numbering, the four-letter short forms that BIP-39 makes unique) and what is said
of a mistyped one. Pure.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import unicodedata

from mnemonic import Mnemonic

from cloudmount.errors import WrongPassphraseError

WORDS = 24


@functools.cache
def _list() -> Mnemonic:
    return Mnemonic("english")


def new_phrase() -> str:
    """A fresh phrase: 24 words, single spaces."""
    return str(_list().to_mnemonic(os.urandom(32)))


def phrase_words(text: str) -> list[str]:
    """The words typed, lower case; numbers, commas and line breaks between them don't matter."""
    return re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKD", text).lower())


def looks_like_phrase(text: str) -> bool:
    """Whether someone meant this as a recovery phrase: 20 to 28 words, three quarters of them on the list."""
    words = phrase_words(text)
    known = sum(1 for w in words if _full(w) is not None)
    return WORDS - 4 <= len(words) <= WORDS + 4 and known * 4 >= len(words) * 3


def _full(word: str) -> str | None:
    """The list's word that `word` is or shortens to its first four letters."""
    words = _list().wordlist
    if word in words:
        return word
    if len(word) == 4:
        return next((w for w in words if w.startswith(word)), None)
    return None


def phrase_secret(text: str) -> bytes:
    """The 32 secret bytes of a phrase; `WrongPassphraseError` naming the word that is wrong."""
    full = []
    for number, word in enumerate(phrase_words(text), 1):
        found = _full(word)
        if found is None:
            near = difflib.get_close_matches(word, _list().wordlist, 3, 0.6)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise WrongPassphraseError(
                f"word {number} of the recovery phrase, {word!r}, is not on the word list{hint}"
            )
        full.append(found)
    if len(full) != WORDS:
        raise WrongPassphraseError(f"a recovery phrase has {WORDS} words; {len(full)} were given")
    phrase = " ".join(full)
    if not _list().check(phrase):
        raise WrongPassphraseError(
            "the recovery phrase's checksum is wrong: every word is on the list, but one of them, "
            "or their order, is not as it was written down"
        )
    return bytes(_list().to_entropy(phrase))
