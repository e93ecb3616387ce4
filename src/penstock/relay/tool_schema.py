"""What a model is told of a Python function that it may call, and how its arguments are read. Sans-I/O.

    def get_weather(city: str, days: int = 1) -> list[str]:
        '''The weather of the next days.

        Args:
            city: its name, with the country where there are several.
        '''

The JSON schema is made of the type hints, by msgspec: everything that it can decode from JSON may be the type of an
argument, dataclasses and `Annotated[int, msgspec.Meta(ge=1)]` too. The docstring says what the tool and, in its section
`Args:`, what each argument is for.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_type_hints

import msgspec

from penstock.wire.codec import encode_json

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What OpenAI and Anthropic both take."""
_ARGS = re.compile(r"^(?:Args|Arguments|Parameters):\n((?:[ \t]+.*\n|\n)*)", re.MULTILINE)
_ARG = re.compile(r"^([ \t]+)\*{0,2}(\w+)(?: ?\([^)]*\))?:[ \t]*(.*)$")
_DEFS = "#/$defs/"
_NAMED_ONLY = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ToolSchema(NamedTuple):
    """What a model is told of one tool."""

    name: str
    description: str
    """May be empty."""
    input_schema: dict[str, Any]
    """A JSON schema of type `object`."""


def add_tools(body: dict[str, Any], tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a request with these tools beside those that it has: the app's own, or the upstream's."""
    return {**body, "tools": [*body.get("tools", ()), *tools]} if tools else body


class Signature:
    """A function's schema, and the decoder of its arguments.

    Raises:
        TypeError: if a parameter has no type, a type has no JSON schema, or it can't be given by name.
        ValueError: if the name is not 1 to 64 of `A-Z a-z 0-9 _ -`.
    """

    def __init__(self, function: Callable[..., Any], *, name: str | None, description: str | None) -> None:
        name = name or str(getattr(function, "__name__", ""))
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no tool's name: 1 to 64 of A-Z a-z 0-9 _ -; give one with name=")
        whole, about = _read_docstring(inspect.getdoc(function) or "")
        try:
            struct = _arguments_type(function)
            (top,), components = msgspec.json.schema_components((struct,), ref_template=f"{_DEFS}{{name}}")
            self._decoder = msgspec.json.Decoder(struct)
        except (TypeError, NameError) as exc:
            raise TypeError(f"{name} can't be a tool: {exc}") from exc
        self._fields = struct.__struct_fields__
        self.schema = ToolSchema(
            name,
            whole if description is None else description,
            _schema(top["$ref"].removeprefix(_DEFS), components, about),
        )

    def decode(self, value: Any) -> dict[str, Any]:
        """Read a call's input: strictly, with the defaults of what is left out, and sharing nothing with it.

        Raises:
            msgspec.ValidationError: it doesn't fit. The text says where, and may quote the input.
        """
        arguments = self._decoder.decode(encode_json({} if value is None else value))
        return {name: getattr(arguments, name) for name in self._fields}


def _arguments_type(function: Callable[..., Any]) -> type[msgspec.Struct]:
    hints = get_type_hints(function, include_extras=True)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in _NAMED_ONLY:
            raise TypeError(f"its parameter {name} can't be given by name alone")
        if name not in hints:
            raise TypeError(f"its parameter {name} has no type")
        if parameter.default is parameter.empty:
            fields.append((name, hints[name]))
        else:
            fields.append((name, hints[name], parameter.default))
    # Unknown fields are refused: what a model made up it should hear of, rather than find ignored.
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


def _schema(name: str, components: dict[str, Any], about: dict[str, str]) -> dict[str, Any]:
    """Put what msgspec made into one schema that refers to nothing outside itself."""
    schema: dict[str, Any] = components.pop(name)
    del schema["title"]
    for argument, text in about.items():
        if argument in schema["properties"]:
            schema["properties"][argument].setdefault("description", text)
    if components:
        schema["$defs"] = components
    return schema


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return a docstring without its `Args:`, and what that says of each argument."""
    section = _ARGS.search(f"{text}\n")
    if section is None:
        return text, {}
    rest = f"{text[: section.start()].rstrip()}\n\n{text[section.end() :].strip()}".strip()
    return rest, {name: " ".join(words) for name, words in _arguments(section[1].splitlines())}


def _arguments(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each argument of the section with its lines. What is indented deeper goes on with the one before."""
    indent: str | None = None
    name, words = "", list[str]()
    for line in lines:
        found = _ARG.match(line)
        if found and (indent is None or found[1] == indent):
            if name:
                yield name, words
            indent, name, words = found[1], found[2], [found[3]] if found[3] else []
        elif line.strip():
            words.append(line.strip())
    if name:
        yield name, words
