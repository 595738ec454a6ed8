"""Scripts as tree-sitter's grammar of PowerShell reads them; single-quoted literals as the language does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import tree_sitter
import tree_sitter_powershell

_PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
_QUOTES = "'\u2018\u2019\u201a\u201b"


def parsed(data: bytes) -> tree_sitter.Node:
    """The tree of a script; its mark, which is no part of the language, is taken off."""
    return _PARSER.parse(data.removeprefix(b"\xef\xbb\xbf")).root_node


def walk(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    """A node and all below it, in the order of the text."""
    yield node
    for child in node.children:
        yield from walk(child)


def text(node: tree_sitter.Node | None) -> str:
    """What a node stands for in the script."""
    assert node is not None and node.text is not None
    return node.text.decode()


def wrong(root: tree_sitter.Node) -> list[str]:
    """What is no PowerShell."""
    return [f"{n.start_point}: {text(n)[:60]}" for n in walk(root) if n.is_error or n.is_missing]


@dataclass
class Call:
    """A command with its parameters (without hyphen); `by` is `&` for one that a value names."""

    name: str
    by: str = ""
    given: list[str] = field(default_factory=list)
    loose: int = 0
    """Arguments that follow no parameter."""
    words: dict[str, str] = field(default_factory=dict)
    """What follows a parameter, where that is a bare word."""
    in_pipeline: bool = False
    """Whether it gets something from a pipeline."""


def calls(root: tree_sitter.Node) -> list[Call]:
    """Every command of a script."""
    found = []
    for node in walk(root):
        if node.type != "command":
            continue
        call = Call("")
        parent = node.parent
        assert parent is not None
        first = next(n for n in parent.children if n.type != "|")
        call.in_pipeline = first.id != node.id
        after = False
        for part in node.children:
            if part.type == "command_invokation_operator":
                call.by = text(part)
            elif part.type in ("command_name", "command_name_expr"):
                call.name = text(part)
            elif part.type == "command_elements":
                for element in part.children:
                    if element.type == "command_parameter":
                        call.given.append(text(element)[1:])
                        after = True
                    elif element.type != "command_argument_sep":
                        if after and element.type == "generic_token":
                            call.words[call.given[-1]] = text(element)
                        call.loose += not after
                        after = False
        found.append(call)
    return found


def functions(root: tree_sitter.Node) -> dict[str, set[str]]:
    """The functions that a script has, with the names of their parameters."""
    found = {}
    for node in walk(root):
        if node.type == "function_statement":
            name = next(text(n) for n in node.children if n.type == "function_name")
            block = next((n for n in walk(node) if n.type == "param_block"), None)
            parameters = [n for n in walk(block) if n.type == "script_parameter"] if block else []
            found[name] = {next(text(n)[1:] for n in p.children if n.type == "variable") for p in parameters}
    return found


def read_literal(data: str) -> tuple[str, str]:
    """The value of the single-quoted literal at the start of `data`, and what follows it: as PowerShell's
    own tokenizer does it, in which any of five characters begins and ends one, and of two of them together
    the second stands for itself."""
    assert data[0] in _QUOTES
    value = []
    at = 1
    while True:
        if data[at] in _QUOTES:
            if at + 1 == len(data) or data[at + 1] not in _QUOTES:
                return "".join(value), data[at + 1 :]
            at += 1
        value.append(data[at])
        at += 1
