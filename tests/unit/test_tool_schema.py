"""What a model is told of a function, and what it may send to it."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.relay.protocol import ModelProtocol
from penstock.relay.protocols import make_protocol
from penstock.relay.tool_schema import Signature, ToolSchema
from penstock.testing import user_message


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


@dataclass
class Place:
    city: str
    country: str = "CH"


class Arguments(msgspec.Struct):
    """As the one that is made of a function's parameters is called."""

    inner: Arguments | None = None


def forecast(
    place: Place,
    days: Annotated[int, msgspec.Meta(ge=1, le=14, description="how many")] = 3,
    *,
    unit: Unit = Unit.CELSIUS,
    kind: Literal["rain", "wind"] | None = None,
    since: datetime.date | None = None,
    weights: dict[int, float] = {},  # noqa: B006 -- msgspec copies it
    arguments: Arguments | None = None,
) -> list[str]:
    """The weather of the next days.

    Not of the last ones.

    Args:
        place: a city; with its country,
            nearby: where there are several.
        days: is said in the hint already.
        unit (Unit): of temperatures: those
            that are told.
        nothing: that it has.

    Returns:
        A line for each day.
    """
    raise AssertionError


async def bare(text: str) -> None:
    raise AssertionError


class Shop:
    def buy(self, count: int) -> None:
        """Buy."""


def signature(function: Callable[..., Any], **options: Any) -> Signature:
    return Signature(function, **{"name": None, "description": None, **options})


def test_a_function_is_described_by_its_hints_and_docstring() -> None:
    schema = signature(forecast).schema
    assert schema.name == "forecast"
    assert schema.description == (
        "The weather of the next days.\n\nNot of the last ones.\n\nReturns:\n    A line for each day."
    )
    properties = schema.input_schema["properties"]
    assert list(properties) == ["place", "days", "unit", "kind", "since", "weights", "arguments"]
    assert properties["place"]["description"] == "a city; with its country, nearby: where there are several."
    assert properties["days"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 14,
        "description": "how many",
        "default": 3,
    }
    assert properties["unit"]["description"] == "of temperatures: those that are told."
    assert properties["unit"]["default"] == "celsius"
    assert schema.input_schema["type"] == "object"
    assert schema.input_schema["required"] == ["place"]
    assert schema.input_schema["additionalProperties"] is False
    assert "title" not in schema.input_schema


def test_every_reference_is_within_the_schema() -> None:
    """Also where the caller's own type has the name of ours, and refers to itself."""
    schema = signature(forecast).schema.input_schema
    seen: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                head, _, name = value["$ref"].rpartition("/")
                assert head == "#/$defs"
                seen.add(name)
            for child in value.values():
                walk(child)
        elif isinstance(value, list):
            for child in value:
                walk(child)

    walk(schema)
    assert seen == set(schema["$defs"])
    assert len(seen) == 3


def test_a_function_without_words_still_has_a_schema() -> None:
    assert signature(bare).schema == ToolSchema(
        "bare",
        "",
        {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        },
    )
    assert signature(Shop().buy).schema.input_schema["required"] == ["count"]
    named = signature(bare, name="say-it", description="Says it.").schema
    assert (named.name, named.description) == ("say-it", "Says it.")
    assert signature(forecast, description="").schema.description == ""


def test_arguments_become_what_the_hints_say() -> None:
    arguments = signature(forecast).decode(
        {"place": {"city": "Zürich"}, "unit": "kelvin", "since": "2026-01-02", "weights": {"1": 2}}
    )
    assert arguments == {
        "place": Place("Zürich"),
        "days": 3,
        "unit": Unit.KELVIN,
        "kind": None,
        "since": datetime.date(2026, 1, 2),
        "weights": {1: 2.0},
        "arguments": None,
    }


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "missing required field `place`"),
        (None, "missing required field `place`"),
        ([], "Expected `object`, got `array`"),
        ("text", "Expected `object`, got `str`"),
        ({"place": {"city": "Zürich"}, "days": "3"}, "at `$.days`"),
        ({"place": {"city": "Zürich"}, "days": True}, "at `$.days`"),
        ({"place": {"city": "Zürich"}, "days": 15}, "at `$.days`"),
        ({"place": {"city": 1}}, "at `$.place.city`"),
        ({"place": {"city": "Zürich"}, "made_up": 1}, "unknown field `made_up`"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(value: Any, says: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=says.replace("$", r"\$").replace("[", r"\[")):
        signature(forecast).decode(value)


def test_no_input_is_an_empty_one() -> None:
    def now() -> str:
        raise AssertionError

    assert signature(now).decode(None) == signature(now).decode({}) == {}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_input_is_read_or_refused_and_shares_nothing(value: Any) -> None:
    def take(it: Any, them: list[Any] | None = None) -> None:
        raise AssertionError

    assert signature(take).decode({"it": value}) == {"it": value, "them": None}
    items = signature(take).decode({"it": 0, "them": [[value]]})["them"]
    items[0].clear()
    try:
        signature(forecast).decode(value)
    except msgspec.ValidationError:
        pass


def test_what_can_not_be_a_tool_is_refused_at_once() -> None:
    def untyped(it) -> None:  # type: ignore[no-untyped-def]
        pass

    def positional(it: int, /) -> None:
        pass

    def any_number(*them: int) -> None:
        pass

    def a_path(it: Path) -> None:
        pass

    def a_list(them: list[int] = [1]) -> None:  # noqa: B006
        pass

    class Local(msgspec.Struct):
        pass

    def unknown(it: Local) -> None:
        pass

    refused: list[tuple[Callable[..., Any], str]] = [
        (unknown, "'Local' is not defined"),
        (untyped, "it has no type"),
        (positional, "it can't be given by name"),
        (any_number, "them can't be given by name"),
        (a_path, "Path"),
        (a_list, "mutable"),
    ]
    for function, says in refused:
        with pytest.raises(TypeError, match=f"(?s){function.__name__} can't be a tool: .*{says}"):
            signature(function)
    for name in ("has space", "a" * 65):
        with pytest.raises(ValueError, match="is no tool's name"):
            signature(bare, name=name)
    with pytest.raises(ValueError, match="give one with name="):
        signature(partial(bare, "text"))
    with pytest.raises(ValueError, match="give one with name="):
        signature(lambda: None)


BUY = ToolSchema("buy", "Buy.", {"type": "object", "properties": {}})
SEARCH = {"type": "web_search"}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (
            "openai",
            {
                "type": "function",
                "function": {"name": "buy", "description": "Buy.", "parameters": BUY.input_schema},
            },
        ),
        (
            "responses",
            {
                "type": "function",
                "name": "buy",
                "description": "Buy.",
                "parameters": BUY.input_schema,
                "strict": False,
            },
        ),
        ("anthropic", {"name": "buy", "description": "Buy.", "input_schema": BUY.input_schema}),
    ],
)
def test_every_models_protocol_offers_tools_in_its_own_form(name: str, form: dict[str, Any]) -> None:
    """Beside those that the app's own fields have, which stay as they are."""

    def tools(extra_body: dict[str, Any] | None, *offered: ToolSchema) -> Any:
        protocol = make_protocol(name, "m", extra_body)
        assert isinstance(protocol, ModelProtocol)
        return msgspec.json.decode(protocol.model_body([user_message("Go")], offered)).get("tools")

    assert tools(None) is None
    assert tools(None, BUY) == [form]
    own = {"tools": [SEARCH]}
    assert tools(own) == [SEARCH]
    assert tools(own, BUY, BUY) == [SEARCH, form, form]
    assert own == {"tools": [SEARCH]}


@pytest.mark.parametrize("name", ["ui-stream", "chat"])
def test_an_app_is_offered_no_tools(name: str) -> None:
    assert not isinstance(make_protocol(name), ModelProtocol)
