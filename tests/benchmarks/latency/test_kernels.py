"""Products alone: what is measured, in which order, and the rates made of it."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.latency import kernels, machine
from benchmarks.latency.kernels import KINDS, Case, Settings, measure
from benchmarks.report.kernels import kernel_tables, rate_of
from benchmarks.rows.kinds import check
from neuralchat_lite.kernels import runtime

TINY = Settings(["generic"], outputs=17, columns=40, rows=(1, 3), rounds=2, seconds=0)


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sets whose bandwidth is probed, in order."""
    probed: list[str] = []

    def probe(_: float) -> float:
        probed.append(runtime.isa().value)
        return 1e9

    monkeypatch.setattr(machine, "probe_bandwidth", probe)
    monkeypatch.setattr(kernels, "PEAK_SECONDS", 0.0)
    return probed


def test_every_set_kind_and_number_of_rows_is_measured_in_every_round(probes: list[str]) -> None:
    isas = runtime.usable_isas()
    before = runtime.isa().value
    rows = measure(Settings(isas, outputs=17, columns=40, rows=(1, 3), rounds=2, seconds=0))
    assert runtime.isa().value == before
    assert probes == isas * 2  # in turn, not one set after the other
    where = [(row["isa"], row["weights"], row["compute"], row["rows"]) for row in rows]
    assert where == [(isa, *kind, count) for isa in isas for kind in KINDS for count in (1, 3)]
    for row in rows:
        check(row)
        assert len(row["samples"]) == len(row["peaks"]) == len(row["bandwidths"]) == 2
        assert min(row["samples"]) > 0 and min(row["peaks"]) > 0


def test_the_weights_of_few_rows_come_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "last_level_cache", lambda: 10_000)
    [row] = measure(Settings(["generic"], [("int4", "bf16")], [1], 32, 64, rounds=1, seconds=0))
    assert row["weight_bytes"] == 32 * 64 // 2 + 2 * 32 * 2
    assert row["copies"] == 35  # the first number whose bytes are four times the cache
    monkeypatch.setattr(machine, "last_level_cache", lambda: None)
    assert kernels.copies_of(1) == kernels.MOST_COPIES
    asked = Settings(["generic"], [("int4", "bf16")], [1], 32, 64, copies=2, rounds=1, seconds=0)
    assert measure(asked)[0]["copies"] == 2


def test_copies_take_turns() -> None:
    settings = Settings(["generic"], outputs=16, columns=32, copies=3)
    stored = kernels.matrices("int8", settings)
    assert len({matrix.codes.data_ptr() for matrix in stored}) == 3
    case, seen = Case(kernels.projections(stored, "bf16"), 1), []
    linear = case.kernels.linear
    case.kernels.linear = lambda x, p, out: (seen.append(p), linear(x, p, out))  # type: ignore
    for _ in range(2):
        case.sample(0)
    assert len(set(map(id, seen[:3]))) == 3 and seen[3] is seen[0]


def made(**changed: Any) -> Any:
    [row] = measure(Settings(["generic"], [("int4", "int8")], [4], 1000, 100, rounds=1, seconds=0))
    return row | {"samples": [1e-3, 2e-3, 4e-3], "peaks": [1e9, 1e9, 0.5e9]} | changed


def test_rates_count_both_operations_and_compare_within_a_round() -> None:
    row = made(weight_bytes=50_000, bandwidths=[1e8, 1e8, 0.25e8])
    rate = rate_of(row)
    assert rate.operations == pytest.approx(2 * 4 * 1000 * 100 / 2e-3)
    assert rate.weights == pytest.approx(25e6)
    assert rate.peak == 1e9
    assert rate.peak_share == pytest.approx(0.4)  # of 0.8, 0.4 and 0.4
    assert rate.bandwidth_share == pytest.approx(0.5)  # of 0.5, 0.25 and 0.5


def test_the_share_of_the_bandwidth_is_shown_for_few_rows_alone() -> None:
    few, many = made(bandwidths=[1e8] * 3), made(bandwidths=[1e8] * 3, rows=64)
    [table] = kernel_tables([few, many])
    shown = list(table.columns[-1].cells)
    assert shown[0].endswith("%") and shown[1] == ""
