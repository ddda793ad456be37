"""The proof holds for every algorithm up to 64 ranks, and it finds faults that are planted."""

from dataclasses import replace

import pytest

from lockstep.collectives.prove import GROUP_SIZES, failures_of, prove
from lockstep.collectives.schedule import PAIRS, Phase, Transfer, closed_form, make
from lockstep.collectives.topology import Topology

EVERY_PAIR = [
    (algorithm, collective) for algorithm, collectives in PAIRS.items() for collective in collectives
]


@pytest.mark.parametrize(("algorithm", "collective"), EVERY_PAIR)
def test_each_contribution_ends_in_each_chunk_exactly_once_for_1_to_64_ranks(algorithm, collective):
    for size in range(1, 65):
        for ranks_per_machine in GROUP_SIZES if algorithm == "hierarchical" else (size,):
            proof = prove(collective, algorithm, Topology(size, ranks_per_machine))
            assert proof.failures == (), (size, ranks_per_machine)


def schedules_of(algorithm, collective, size=6, **options):
    topology = Topology(size, 4 if algorithm == "hierarchical" else size)
    schedules = [make(collective, algorithm, rank, size, topology, **options) for rank in range(size)]
    claims = [closed_form(collective, algorithm, rank, size, topology, **options) for rank in range(size)]
    # As tuples, so that they can be changed; and without phases, so that only the change is found.
    return [replace(schedule, rounds=tuple(schedule.rounds), phases=()) for schedule in schedules], claims


def changed(schedule, number, transfers):
    rounds = list(schedule.rounds)
    rounds[number] = tuple(transfers)
    return replace(schedule, rounds=tuple(rounds))


def messages(schedules):
    """Every (round, receiver, index of the receive, sender, index of the send)."""
    for number in range(len(schedules[0].rounds)):
        for schedule in schedules:
            for index, each in enumerate(schedule.rounds[number]):
                if each.kind != "send":
                    sender = schedules[each.peer].rounds[number]
                    wanted = Transfer(schedule.rank, each.chunks, "send")
                    yield number, schedule.rank, index, each.peer, sender.index(wanted)


def without(transfers, index):
    return [each for at, each in enumerate(transfers) if at != index]


@pytest.mark.parametrize(("algorithm", "collective"), EVERY_PAIR)
def test_any_message_left_out_is_found(algorithm, collective):
    schedules, _ = schedules_of(algorithm, collective)
    assert failures_of(schedules) == []
    for number, receiver, at, sender, sent_at in messages(schedules):
        broken = list(schedules)
        broken[receiver] = changed(broken[receiver], number, without(broken[receiver].rounds[number], at))
        assert failures_of(broken), "a send without its receive"
        broken[sender] = changed(broken[sender], number, without(broken[sender].rounds[number], sent_at))
        assert failures_of(broken), "the message missing on both sides"


@pytest.mark.parametrize(
    ("algorithm", "collective"), [pair for pair in EVERY_PAIR if pair != ("direct", "broadcast")]
)
def test_any_message_of_a_wrong_chunk_is_found(algorithm, collective):
    schedules, _ = schedules_of(algorithm, collective)
    for number, receiver, at, sender, sent_at in messages(schedules):
        old = schedules[receiver].rounds[number][at].chunks
        moved = range(old.start + 1, old.stop + 1) if old.stop < schedules[0].chunks else range(old.start)
        broken = list(schedules)
        for rank, index in ((receiver, at), (sender, sent_at)):
            transfers = list(broken[rank].rounds[number])
            transfers[index] = replace(transfers[index], chunks=moved)
            broken[rank] = changed(broken[rank], number, transfers)
            assert failures_of(broken), "on one side" if rank == receiver else "on both sides"


@pytest.mark.parametrize(("algorithm", "collective"), EVERY_PAIR)
def test_a_message_added_twice_is_found(algorithm, collective):
    """Each message doubled in a round of its own: what is added counts twice, and the claims no longer hold."""
    schedules, claims = schedules_of(algorithm, collective)
    for number, receiver, at, sender, sent_at in messages(schedules):
        received, sent = schedules[receiver].rounds[number][at], schedules[sender].rounds[number][sent_at]
        extra = {receiver: (received,), sender: (sent,)}
        doubled = [
            replace(
                each,
                rounds=(*each.rounds[: number + 1], extra.get(each.rank, ()), *each.rounds[number + 1 :]),
            )
            for each in schedules
        ]
        failures = failures_of(doubled, claims)
        assert failures
        if received.kind == "receive_reduce":
            assert any("twice" in failure for failure in failures), failures


@pytest.mark.parametrize(
    ("transfers", "reason"),
    [
        ([Transfer(1, range(1), "send"), Transfer(1, range(1), "receive")], "sends and writes chunk 0"),
        (
            [Transfer(1, range(1), "receive"), Transfer(1, range(1), "receive")],
            "receives chunk 0 twice",
        ),
        (
            [Transfer(1, range(1), "receive"), Transfer(1, range(1), "receive_reduce")],
            "copies and adds",
        ),
        ([Transfer(0, range(1), "send")], "names the peer 0"),
        ([Transfer(2, range(1), "send")], "names the peer 2"),
        ([Transfer(1, range(3), "send")], "names the chunks"),
        ([Transfer(1, range(1, 1), "send")], "names the chunks"),
    ],
)
def test_a_round_that_breaks_a_rule_is_found_and_named(transfers, reason):
    schedules, _ = schedules_of("ring", "all_reduce", 2)
    schedules[0] = changed(schedules[0], 0, transfers)
    assert any(reason in failure for failure in failures_of(schedules))


def test_messages_of_one_pair_in_another_order_are_found():
    schedules, _ = schedules_of("tree", "all_reduce", 2)
    number = next(
        at
        for at, transfers in enumerate(schedules[0].rounds)
        if [each.kind for each in transfers].count("send") == 2
    )
    sends = [each for each in schedules[0].rounds[number] if each.kind == "send"]
    rest = [each for each in schedules[0].rounds[number] if each.kind != "send"]
    schedules[0] = changed(schedules[0], number, [*reversed(sends), *rest])
    assert any("which receives" in failure for failure in failures_of(schedules))


def test_ranks_that_disagree_on_rounds_are_found():
    schedules, _ = schedules_of("ring", "all_reduce")
    schedules[2] = replace(schedules[2], rounds=schedules[2].rounds[:-1])
    assert failures_of(schedules) == ["ranks disagree on the number of rounds or of chunks"]


def test_wrong_claims_are_found():
    schedules, claims = schedules_of("ring", "all_reduce")
    claims[3] = replace(claims[3], sent=claims[3].sent + 1)
    assert [failure[:6] for failure in failures_of(schedules, claims)] == ["rank 3"]


def test_phases_that_are_not_those_of_the_rounds_are_found():
    schedules, _ = schedules_of("ring", "all_reduce", 4)
    longer = [replace(each, phases=(*each.phases[:-1], Phase(400))) for each in schedules]
    assert failures_of(longer) == ["phases of 400 rounds are declared, and there are 6"]
    one = [*schedules[:2], replace(schedules[2], phases=(Phase(1), Phase(5))), schedules[3]]
    assert failures_of(one) == ["rank 2 declares other phases than rank 0"]


def test_claims_for_fewer_ranks_than_there_are_are_found():
    schedules, claims = schedules_of("ring", "all_reduce", 4)
    assert failures_of(schedules, claims[:3]) == ["there are 3 claims for 4 ranks"]


def test_rounds_that_are_declared_alike_and_are_not_are_found():
    schedules, _ = schedules_of("ring", "all_reduce", 4)
    schedules = [replace(schedule, phases=(Phase(6),)) for schedule in schedules]
    assert failures_of(schedules) == ["round 4 is declared to look like the one before, and does not"]
    schedules = [replace(schedule, phases=(Phase(3), Phase(3, everyone=True))) for schedule in schedules]
    assert failures_of(schedules) == ["round 4 is declared to be between everyone, and is not"]
