"""The value of JSON that is cut off: what a client makes of a tool's input while it still comes.

The text counts up to the last place where a value could have ended, and what is open there is closed: a string where it
is cut, a number at its last digit, a word (`tr`) as the word it begins, arrays and objects after their last whole entry.

Source: `parsePartialJson` of the npm package `ai` 5.0, 6.0 and 7.0. Facts where they differ: 5 and 6 have no value for a
text that ends in the minus of an array's first number, 5 has none for one that ends within an escape such as `\\u00e9`.

Differences from all of them: what `decode_json` refuses (the same key twice, nesting beyond its limit) has no value here;
an object that holds the key `__proto__` has one; half of an escaped surrogate pair is left out, as it has no UTF-8; and
of text that is no beginning of JSON clients sometimes make a value by accident, as `{"a"` of `{"a": Tru`.
"""

from __future__ import annotations

import re
from typing import Any

from msgspec import UNSET

from penstock.errors import RemoteProtocolError
from penstock.wire.codec import decode_json
from penstock.wire.versions import SdkVersion

# A string matches as far as its escapes are whole.
_TOKEN = re.compile(
    r"""[ \t\n\r]* (?:
        ([\[\]{}:,])
      | (" [^"\\]* (?: (?: \\[^u]
                         | \\u (?!D[89A-F]) [0-9A-F]{4}
                         | \\u D[89AB] [0-9A-F]{2} \\u D[C-F] [0-9A-F]{2}
                       ) [^"\\]* )*) ("?)
      | ([-+.\w]+)
    )""",
    re.VERBOSE | re.DOTALL | re.ASCII | re.IGNORECASE,
)
_CUT_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{0,3}\Z")
_CLOSERS = {"{": "}", "[": "]"}
_WORDS = ("true", "false", "null")


def parse_partial_json(text: str, sdk: SdkVersion = 7) -> Any:
    """Parse JSON that may be cut off anywhere, in time linear in its length.

    Returns:
        The value, or UNSET if there is none.
    """
    for json in (text, _closed(text, sdk)):
        try:
            return decode_json(json.encode(), max_bytes=4 * len(json))
        except (RemoteProtocolError, UnicodeEncodeError):
            continue
    return UNSET


def _closed(text: str, sdk: SdkVersion) -> str:
    """Cut a text after its last value, and close what is open there."""
    closers: list[
        str
    ] = []  # whatever changes it is itself a place to cut, so it holds for the last such place
    end = at = 0
    suffix = before = ""
    key_next = False
    while (closers or not end) and (token := _TOKEN.match(text, at)) is not None:
        at = token.end()
        mark, string, quote, word = token.groups(default="")
        if mark in _CLOSERS:
            closers.append(_CLOSERS[mark])
            end, suffix, key_next = at, "", mark == "{"
        elif mark == "]" or mark == "}":
            if closers[-1:] != [mark]:
                break
            closers.pop()
            end, suffix, key_next = at, "", False
        elif mark:
            key_next = mark == "," and closers[-1:] == ["}"]
        elif key_next:
            pass  # a key counts with its value only
        elif string:
            end, suffix = at, "" if quote else '"'
        elif word[0] in "-0123456789":
            if closers[-1:] == ["}"]:  # clients stop at an exponent's plus, unless it is in an array
                word = word.partition("+")[0]
            digits = word.rstrip("+-.eE")
            if digits:
                end, suffix = token.start(4) + len(digits), ""
            elif sdk < 7 and before == "[":
                return ""
        else:
            whole = next((whole for whole in _WORDS if whole.startswith(word)), None)
            if whole is None:
                return ""
            end, suffix = at, whole[len(word) :]
        before = mark
    if sdk == 5 and suffix == '"' and _CUT_ESCAPE.search(text, at):
        return ""
    return text[:end] + suffix + "".join(reversed(closers))
