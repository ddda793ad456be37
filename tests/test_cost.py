"""The simulated cost equals the formulas of the literature, and reaches 16,384 ranks."""

import math

import pytest

from lockstep.collectives.cost import MOST_DIRECT_RANKS, choose, in_bytes, in_seconds, simulate
from lockstep.collectives.schedule import PAIRS
from lockstep.collectives.topology import Link, Topology
from lockstep.errors import UsageError

ALPHA, BETA, GAMMA, BYTES = 5e-6, 1e-9, 0.25e-9, 10_000_000


def one_machine(size):
    link = Link(ALPHA, BETA)
    return Topology(size, size, link, link, GAMMA)


@pytest.mark.parametrize("size", [2, 3, 8, 100])
def test_the_ring_costs_what_its_formula_says(size):
    share = BYTES * (size - 1) / size
    expected = 2 * (size - 1) * ALPHA + 2 * share * BETA + share * GAMMA
    assert simulate("all_reduce", "ring", BYTES, one_machine(size)).seconds == pytest.approx(expected)


@pytest.mark.parametrize("size", [2, 8, 64, 256])
def test_halving_doubling_costs_what_its_formula_says(size):
    share = BYTES * (size - 1) / size
    expected = 2 * math.log2(size) * ALPHA + 2 * share * BETA + share * GAMMA
    assert simulate("all_reduce", "halving_doubling", BYTES, one_machine(size)).seconds == pytest.approx(
        expected
    )


@pytest.mark.parametrize("size", [2, 5, 64])
def test_direct_costs_what_its_formula_says(size):
    share = BYTES * (size - 1) / size
    expected = 2 * (size - 1) * ALPHA + 2 * share * BETA + share * GAMMA
    assert simulate("all_reduce", "direct", BYTES, one_machine(size)).seconds == pytest.approx(expected)


def test_the_ring_waits_for_its_slow_links_in_every_round():
    topology = Topology(32, 8, Link(1e-6, 1e-11), Link(1e-5, 1e-9), 0.0)
    expected = 62 * (1e-5 + BYTES / 32 * 1e-9)
    assert simulate("all_reduce", "ring", BYTES, topology).seconds == pytest.approx(expected)


@pytest.mark.parametrize(("algorithm", "collective"), [(a, c) for a, names in PAIRS.items() for c in names])
@pytest.mark.parametrize("size", [5, 24])
def test_declared_phases_change_nothing_but_the_time_it_takes(algorithm, collective, size, monkeypatch):
    """The shortcut for rounds that look alike, against reading every round."""
    from dataclasses import replace

    from lockstep.collectives import cost

    topology = Topology(size, 4)
    short = simulate(collective, algorithm, BYTES, topology)
    original = cost.make
    monkeypatch.setattr(cost, "make", lambda *words: replace(original(*words), phases=()))
    full = simulate(collective, algorithm, BYTES, topology)
    assert short.seconds == pytest.approx(full.seconds)
    assert (short.rounds, short.messages) == (full.rounds, full.messages)
    assert short.bytes_sent == pytest.approx(full.bytes_sent)


@pytest.mark.parametrize(
    "algorithm", ["ring", "direct", pytest.param("hierarchical", marks=pytest.mark.slow)]
)
def test_16384_ranks_are_simulated(algorithm):
    found = simulate("all_reduce", algorithm, 400_000_000, Topology(16_384, 8))
    assert found.bytes_sent == pytest.approx(2 * 400_000_000, rel=1e-3)
    assert 0 < found.seconds < 60


def test_what_is_too_much_to_simulate_is_refused():
    with pytest.raises(UsageError, match="too many to simulate"):
        simulate("broadcast", "ring", 1000, Topology(16_384, 8))


def test_small_buffers_go_by_few_rounds_and_machines_by_levels():
    algorithm, reason = choose("all_reduce", 64, Topology.one_machine(8))
    assert algorithm == "halving_doubling"
    assert "64 B" in reason
    assert "8 ranks of 1 machine;" in reason
    assert "ring" in reason
    assert choose("all_reduce", 400_000_000, Topology(256, 8))[0] == "hierarchical"
    assert choose("broadcast", 64, Topology.one_machine(64))[0] == "tree"


def test_the_choice_names_an_algorithm_that_does_the_collective_at_every_size():
    for collective in ("all_reduce", "reduce_scatter", "all_gather", "broadcast"):
        for size in (1, 2, 3, MOST_DIRECT_RANKS + 1):
            algorithm, reason = choose(collective, 4096, Topology(size, 2))
            assert collective in PAIRS[algorithm]
            assert reason


def test_an_algorithm_that_cannot_be_simulated_is_no_candidate():
    algorithm, reason = choose("all_reduce", 400_000_000, Topology(2500, 2499))
    assert algorithm != "hierarchical" and "hierarchical" not in reason


def test_equal_costs_are_settled_the_same_way_on_every_rank():
    assert choose("all_reduce", 4096, Topology.one_machine(2))[0] == "direct"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ns"),
        (1.2e-8, "12 ns"),
        (1e-6, "1 µs"),
        (9.996e-4, "1 ms"),
        (0.0325, "32.5 ms"),
        (1234.0, "1,234 s"),
    ],
)
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert in_seconds(seconds) == text


def test_bytes_have_decimal_units():
    assert [in_bytes(count) for count in (4, 4096, 400_000_000, 2e9)] == ["4 B", "4.096 KB", "400 MB", "2 GB"]
