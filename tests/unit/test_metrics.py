"""Names of numbers, and the text that Prometheus reads: parsed by its own client."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import penstock
from penstock.closing import CloseReason
from penstock.journal.store import TurnState
from penstock.metrics import MEASURES, Counters, known
from penstock.prometheus import prometheus_text

ROOT = Path(penstock.__file__).parent
OPERATIONS = ROOT.parents[1] / "docs" / "operations.md"


def counted() -> Iterator[tuple[str, str, set[str]]]:
    """Each number that the code names: by which method, its name, and its labels."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("count", "gauge")
                and ast.unparse(node.func.value).endswith(("metrics", "counters"))
                and isinstance(node.args[0], ast.Constant)
            ):
                labels = {str(keyword.arg) for keyword in node.keywords}
                yield node.func.attr, str(node.args[0].value), labels


def test_the_code_counts_what_is_described_and_nothing_else() -> None:
    found = set()
    for method, name, labels in counted():
        measure = MEASURES[name]
        assert measure.kind == {"count": "counter", "gauge": "gauge"}[method], name
        assert labels == ({measure.label} if measure.label else set()), name
        found.add(name)
    assert found | {"workers"} == set(MEASURES)
    assert set(MEASURES["turns_ended"].values) == {state.value for state in TurnState}
    assert MEASURES["connections_closed"].values == tuple(reason.value for reason in CloseReason)


def test_the_docs_have_every_name_and_no_other() -> None:
    names = {
        f"penstock_{name}" + ("_total" if measure.kind == "counter" else "")
        for name, measure in MEASURES.items()
    }
    assert set(re.findall(r"\bpenstock_[a-z_]+", OPERATIONS.read_text())) == names


def test_what_has_not_happened_is_there_as_zero() -> None:
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(prometheus_text(Counters(known()).values))
        for sample in family.samples
    }
    assert set(samples.values()) == {0}
    assert ("penstock_turns_given_up_total",) in samples
    assert ("penstock_turns_ended_total", "lost") in samples
    assert ("penstock_connections_closed_total", "restart") in samples
    assert len(samples) < 64  # for each worker again


@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from(sorted(MEASURES)), st.text(alphabet=st.characters(exclude_categories=["Cs"]))
        ),
        st.integers(0, 1 << 53),
        max_size=20,
    )
)
def test_prometheus_reads_what_was_counted(numbers: dict[tuple[str, str], int]) -> None:
    counters = Counters()
    for (name, label), number in numbers.items():
        counters.count(name, number, reason=label, worker="1")
    counters.count("of_nobody")
    families = list(text_string_to_metric_families(prometheus_text(counters.values)))
    read = {}
    for family in families:
        name = family.name.removeprefix("penstock_")
        assert (family.type, family.documentation) == MEASURES[name][:2]
        for sample in family.samples:
            assert sample.name == family.name + ("_total" if family.type == "counter" else "")
            assert sample.labels["worker"] == "1"
            read[name, sample.labels["reason"]] = sample.value
    assert read == numbers
