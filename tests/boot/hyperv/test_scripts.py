"""The shipped PowerShell: that it is PowerShell, that its cmdlets and parameters are documented ones, and
that nothing from outside can be anything in it but a text."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloudmount.boot.hyperv.literals import QUOTES, Value, expression, fixed_text, literal, script
from tests.boot.hyperv.reading import Call, calls, functions, parsed, read_literal, text, walk, wrong

SCRIPTS = ("boot.ps1", "preflight.ps1")
CMDLETS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "cmdlets.toml").read_text())
COMMON = {"ErrorAction"}
ACTIONS = {"Continue", "SilentlyContinue"}
PROGRAMS = {"$program", "$icacls", "$Body", "$part"}
"""What is called by a value: the program itself, a program of Windows', and blocks of the script."""
TEXTS = st.text(
    st.one_of(
        st.sampled_from(QUOTES + '"\u201c\u201d\u201e`$(){}@#;&|\\\r\n\t \u2013\u2028\ufeff\x00'),
        st.characters(blacklist_categories=("Cs",)),
    )
)
SENDABLE = TEXTS.filter(lambda t: "\0" not in t)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_powershell(name: str) -> None:
    assert wrong(parsed(fixed_text(name).encode())) == []
    assert fixed_text(name).isascii() and "\r" not in fixed_text(name) and "\t" not in fixed_text(name)


def fits(call: Call, known: dict[str, Any]) -> bool:
    """Whether one of a cmdlet's parameter sets takes what it is given."""
    for one in known["sets"]:
        required = set(one.get("required", []))
        every = required | set(one.get("optional", [])) | set(one.get("switches", [])) | COMMON
        missing = required - set(call.given)
        if set(call.given) <= every and (not missing or (call.in_pipeline and missing <= {"InputObject"})):
            return True
    return False


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_cmdlet_and_parameter_is_documented(name: str) -> None:
    root = parsed(fixed_text(name).encode())
    own = functions(root)
    found = calls(root)
    assert len(found) > 30
    for call in found:
        if call.by:
            assert call.by == "&" and call.name in PROGRAMS
        elif call.name in own:
            assert set(call.given) <= own[call.name] and not call.loose
        else:
            assert call.name in CMDLETS, f"{call.name} is in no table"
            assert fits(call, CMDLETS[call.name]), f"{call.name} is not documented so: {call.given}"
            assert not call.loose, f"{call.name}: name each parameter"
            assert len(set(call.given)) == len(call.given)
            assert "IgnoreIdMismatch" not in call.given  # it would hide a parent that is not the same
            for parameter, word in call.words.items():
                known = CMDLETS[call.name].get("values", {}).get(parameter, [])
                assert word in (ACTIONS if parameter in COMMON else known), f"{call.name} -{parameter} {word}"


def test_the_table_of_cmdlets_has_its_sources_and_nothing_that_is_not_used() -> None:
    used = {call.name for name in SCRIPTS for call in calls(parsed(fixed_text(name).encode()))}
    assert CMDLETS.keys() <= used
    for name, entry in CMDLETS.items():
        assert re.fullmatch(
            rf"https://learn\.microsoft\.com/powershell/module/.*/{name.lower()}", entry["source"]
        )


def test_a_parameter_that_there_is_not_is_found() -> None:
    (call,) = calls(parsed(b"Set-VHD -Path $a -ParentPath $b -Leaf $c"))
    assert not fits(call, CMDLETS["Set-VHD"])
    (call,) = calls(parsed(b"Set-VHD -Path $a"))
    assert not fits(call, CMDLETS["Set-VHD"])
    assert wrong(parsed(b"if ($a { }"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_made_of_texts_and_run(name: str) -> None:
    for word in (
        "Invoke-Expression",
        "iex ",
        "ScriptBlock]::Create",
        "AddScript",
        "cmd.exe",
    ):
        assert word.lower() not in fixed_text(name).lower()


@given(SENDABLE)
@example("it's")
@example("\u2018\u2019\u201a\u201b'" * 2)
@example("'; Remove-Item C:\\ -Recurse; '")
@example("$(x) `n \u201d \r\n'@\n")
def test_a_literal_is_read_back_as_it_was(value: str) -> None:
    assert read_literal(literal(value)) == (value, "")
    assert read_literal(literal(value) + "; next") == (value, "; next")
    root = parsed(f"$a = {literal(value)}\n$b = 1\n".encode())
    assert wrong(root) == []
    found = [n for n in walk(root) if n.type == "verbatim_string_characters"]
    assert [text(n) for n in found] == [literal(value)]
    assert len([n for n in walk(root) if n.type == "variable"]) == 2


@pytest.mark.parametrize("value", ["a\0b", "bytes \udcff", "half \ud83d"])
def test_what_no_script_can_hold_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="can't stand in a script"):
        literal(value)


def values() -> st.SearchStrategy[Value]:
    """What a table may hold."""
    names = st.sampled_from(["Name", "Disks", "Place", "Starts"])
    plain: st.SearchStrategy[Value] = st.one_of(st.none(), st.booleans(), st.integers(0, 1 << 62), SENDABLE)
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=6,
    )


@given(values())
def test_a_table_has_the_texts_that_it_was_given_and_nothing_else(value: Value) -> None:
    root = parsed(f"$Table = {expression(value)}\r\n".encode())
    assert wrong(root) == []
    assert calls(root) == []
    read = [read_literal(text(n))[0] for n in walk(root) if n.type == "verbatim_string_characters"]
    assert read == list(texts(value))
    names = [text(n) for n in walk(root) if n.type == "variable"]
    assert set(names) <= {"$Table", "$true", "$false", "$null"}


def texts(value: Value) -> list[str]:
    """Every text and number of a table, in its order."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, (str, int)):
        return [str(value)]
    inner = list(value.values()) if isinstance(value, dict) else list(value)
    return [found for entry in inner for found in texts(entry)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_its_fixed_text_with_its_table(name: str) -> None:
    made = script(name, {"Name": "line\nfeed", "Disks": []})
    assert made.startswith(
        b"\xef\xbb\xbf<#\r\n"
    )  # without the mark Windows PowerShell reads another code page
    assert wrong(parsed(made)) == []
    told = made.decode("utf-8-sig")
    assert "Name = 'line\nfeed'" in told
    without = told.replace("\nfeed", "")
    assert without.count("\n") == without.count("\r\n")
    before, _, after = told.partition("$Table = @{")
    assert before.replace("\r\n", "\n") + after.partition("\r\n}\r\n")[2].replace("\r\n", "\n") == fixed_text(
        name
    ).replace("$Table = $null\n", "")
