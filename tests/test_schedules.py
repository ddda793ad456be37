"""What schedules promise: what they claim to send, how they cut a buffer, what they cost in memory."""

import subprocess
import sys
import textwrap
from fractions import Fraction

import pytest

from lockstep.collectives import tree
from lockstep.collectives.schedule import PAIRS, Transfer, chunk_bounds, closed_form, make
from lockstep.collectives.topology import Topology
from lockstep.errors import UsageError


def test_a_ring_of_three_is_the_one_that_can_be_drawn_by_hand():
    rounds = make("all_reduce", "ring", 0, 3).rounds
    assert list(rounds) == [
        (Transfer(1, range(2, 3), "send"), Transfer(2, range(1, 2), "receive_reduce")),
        (Transfer(1, range(1, 2), "send"), Transfer(2, range(1), "receive_reduce")),
        (Transfer(1, range(1), "send"), Transfer(2, range(2, 3), "receive")),
        (Transfer(1, range(2, 3), "send"), Transfer(2, range(1, 2), "receive")),
    ]


@pytest.mark.parametrize("elements", [0, 1, 2, 7, 97, 4096])
@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 16])
def test_chunks_cover_the_buffer_and_differ_by_one_element_at_most(elements, chunks):
    bounds = chunk_bounds(elements, chunks)
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == elements
    sizes = {stop - start for start, stop in bounds}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 31, 64])
def test_ring_and_direct_send_the_least_that_an_all_reduce_can(size):
    for algorithm in ("ring", "direct"):
        assert closed_form("all_reduce", algorithm, 0, size).sent == Fraction(2 * (size - 1), size)


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64])
def test_halving_doubling_pairs_ranks_as_in_the_paper_when_they_are_a_power_of_two(size):
    for rank in range(size):
        schedule = make("all_reduce", "halving_doubling", rank, size)
        distances = [size >> level for level in range(1, size.bit_length())]
        partners = [{each.peer for each in transfers} for transfers in schedule.rounds]
        assert partners == [{rank ^ distance} for distance in [*distances, *reversed(distances)]]
        assert closed_form("all_reduce", "halving_doubling", rank, size).sent == Fraction(
            2 * (size - 1), size
        )


@pytest.mark.parametrize("size", range(2, 65))
def test_halving_doubling_at_any_size_takes_the_logarithm_in_rounds_and_less_than_three_buffers(size):
    forms = [closed_form("all_reduce", "halving_doubling", rank, size) for rank in range(size)]
    assert {form.rounds for form in forms} == {2 * (size - 1).bit_length()}
    assert max(form.sent for form in forms) < 3
    assert sum(form.sent for form in forms) == 2 * (size - 1)  # on average the least possible


@pytest.mark.parametrize("size", range(2, 130))
def test_no_rank_is_inside_both_trees_and_each_tree_reaches_all(size):
    trees = [[tree.tree_place(rank, size, mirrored) for rank in range(size)] for mirrored in (False, True)]
    assert not any(one.children and other.children for one, other in zip(*trees, strict=True))
    for places in trees:
        assert [place.parent for place in places].count(None) == 1
        assert max(place.depth for place in places) == size.bit_length() - 1
        assert max(len(place.children) for place in places) <= 2
        for rank, place in enumerate(places):
            assert all(places[child].parent == rank for child in place.children)
            assert place.parent is None or places[place.parent].depth == place.depth - 1


@pytest.mark.parametrize("size", range(2, 65))
def test_no_rank_of_the_double_tree_sends_more_than_two_buffers(size):
    assert max(closed_form("all_reduce", "tree", rank, size).sent for rank in range(size)) <= 2


def test_hierarchical_sends_between_machines_only_a_rank_s_share():
    topology = Topology(64, 8)
    schedule = make("all_reduce", "hierarchical", 13, 64, topology)
    crossing = sum(
        Fraction(len(each.chunks), schedule.chunks)
        for transfers in schedule.rounds
        for each in transfers
        if each.kind == "send" and topology.machine_of(each.peer) != 1
    )
    assert crossing == Fraction(2 * 7, 8) / 8


@pytest.mark.parametrize("algorithm", PAIRS)
def test_rounds_of_16384_ranks_are_computed_and_not_kept(algorithm):
    schedule = make("all_reduce", algorithm, 16_383, 16_384, Topology(16_384, 8))
    assert len(schedule.rounds) == closed_form("all_reduce", algorithm, 0, 16_384, Topology(16_384, 8)).rounds
    assert schedule.rounds[-1] == schedule.rounds[len(schedule.rounds) - 1] != ()
    assert schedule.rounds[0] is not schedule.rounds[0]
    with pytest.raises(IndexError):
        schedule.rounds[len(schedule.rounds)]


def test_a_pair_that_does_not_exist_is_refused_with_the_ones_that_do():
    with pytest.raises(UsageError, match="all_gather is done by: ring, halving_doubling, direct"):
        make("all_gather", "tree", 0, 4)
    with pytest.raises(UsageError, match="there are: ring, tree"):
        make("all_reduce", "rings", 0, 4)
    with pytest.raises(UsageError, match="there are: all_reduce"):
        make("reduce", "ring", 0, 4)
    with pytest.raises(UsageError, match="pieces"):
        make("all_reduce", "ring", 0, 4, pieces=2)
    with pytest.raises(UsageError, match="the topology has 8 ranks, the world 4"):
        make("all_reduce", "ring", 0, 4, Topology(8, 2))


FRACTIONS = """
    import sys


    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"torch", "numpy"}:
                raise ImportError(f"{name} is blocked")


    sys.meta_path.insert(0, Blocker())
    try:
        import torch
    except ImportError:
        pass
    else:
        raise SystemExit("torch could be imported")

    from fractions import Fraction

    from lockstep.collectives.plain import run_all
    from lockstep.collectives.schedule import PAIRS, chunk_bounds, make
    from lockstep.collectives.topology import Topology


    def expected(collective, start, bounds, rank, index):
        owner = next(chunk for chunk, (low, high) in enumerate(bounds) if low <= index < high)
        if collective == "broadcast":
            return start[0][index]
        if collective == "all_gather":
            return start[owner][index]
        if collective == "reduce_scatter" and owner != rank:
            return None
        return sum(buffer[index] for buffer in start)


    checked = 0
    for algorithm, collectives in PAIRS.items():
        for collective in collectives:
            for size in (1, 2, 3, 4, 5, 7, 8, 13, 24, 64):
                topology = Topology(size, 3 if algorithm == "hierarchical" else size)
                schedules = [make(collective, algorithm, rank, size, topology) for rank in range(size)]
                for elements in (1, 2, 31) if size <= 24 else (67,):
                    start = [[Fraction(rank + 1, index + 3) for index in range(elements)] for rank in range(size)]
                    buffers = [list(buffer) for buffer in start]
                    run_all(schedules, buffers)
                    bounds = chunk_bounds(elements, schedules[0].chunks)
                    for rank in range(size):
                        for index in range(elements):
                            want = expected(collective, start, bounds, rank, index)
                            if want is not None and buffers[rank][index] != want:
                                raise SystemExit(f"{algorithm} {collective} {size} {elements} {rank} {index}")
                            checked += want is not None
    print(checked)
"""


def test_exact_fractions_come_out_right_where_torch_cannot_be_imported():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FRACTIONS)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20_000
