"""Recovery phrases: read however people type them, and a mistyped word is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemonic import Mnemonic

from cloudmount.crypto.phrase import looks_like_phrase, new_phrase, phrase_secret
from cloudmount.errors import WrongPassphraseError

LIST = Mnemonic("english")
phrases = st.binary(min_size=32, max_size=32).map(LIST.to_mnemonic)


@given(secret=st.binary(min_size=32, max_size=32), data=st.data())
def test_as_people_type_it(secret: bytes, data: st.DataObject) -> None:
    words = LIST.to_mnemonic(secret).split()
    between = st.sampled_from([" ", "  ", "\n", ", ", "\t", " - "])
    case = st.sampled_from([str.lower, str.upper, str.title, lambda w: w[:4]])
    typed = "".join(
        f"{data.draw(st.sampled_from(['', f'{n}. ', f'{n} ']))}{data.draw(case)(w)}{data.draw(between)}"
        for n, w in enumerate(words, 1)
    )
    assert looks_like_phrase(typed)
    assert phrase_secret(typed) == secret


@given(phrase=phrases, place=st.integers(0, 23), other=st.sampled_from(LIST.wordlist))
def test_another_word_of_the_list(phrase: str, place: int, other: str) -> None:
    words = phrase.split()
    if words[place] == other:
        return
    words[place] = other
    typed = " ".join(words)
    assert looks_like_phrase(typed)
    # The checksum has 8 bits: one in 256 such phrases is a good one, another's.
    if LIST.check(typed):
        assert phrase_secret(typed) != phrase_secret(phrase)
        return
    with pytest.raises(WrongPassphraseError, match="checksum"):
        phrase_secret(typed)


@given(phrase=phrases, place=st.integers(0, 23))
def test_a_mistyped_word_is_named(phrase: str, place: int) -> None:
    words = phrase.split()
    words[place] += "q"
    with pytest.raises(WrongPassphraseError, match=f"word {place + 1} .*{words[place]}"):
        phrase_secret(" ".join(words))


@given(phrase=phrases, count=st.integers(20, 23))
def test_missing_words(phrase: str, count: int) -> None:
    with pytest.raises(WrongPassphraseError, match=f"24 words; {count}"):
        phrase_secret(" ".join(phrase.split()[:count]))


@given(text=st.text(max_size=60))
def test_a_passphrase_is_none(text: str) -> None:
    assert not looks_like_phrase(text)


def test_new_ones_differ() -> None:
    assert len({new_phrase() for _ in range(5)}) == 5
    assert all(len(new_phrase().split()) == 24 for _ in range(5))
