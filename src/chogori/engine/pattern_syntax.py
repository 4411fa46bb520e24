r"""JSON schema's patterns, which are ECMAScript's, in the syntax of the grammar's library, which is Rust's.

Where both take a pattern and mean different things: in Rust's brackets `[` opens a class within the class (so that
`[[:alpha:]]` is one letter), `&&`, `--` and `~~` combine classes, and `\<` and `\>` are borders of words.

Loads no torch.
"""

from __future__ import annotations


def in_rust(pattern: str) -> str:
    """`pattern` with the same meaning as in ECMAScript. What Rust cannot express stays, and is refused there."""
    out: list[str] = []
    in_class, at = False, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            escaped = pattern[at : at + 2]
            out.append(escaped[1] if escaped in ("\\<", "\\>") else escaped)
            at += 2
            continue
        if not in_class:
            in_class = char == "["
            out.append(char)
        elif char == "]":
            in_class = False
            out.append(char)
        elif char == "[" or (char in "&-~" and pattern[at - 1] == char):
            out.append("\\" + char)
        else:
            out.append(char)
        at += 1
    return "".join(out)
