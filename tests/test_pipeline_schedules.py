"""Pipeline schedules are data that can be proven: every one is, and a broken one is found out."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.collectives.pipeline import Action, classic_bubble, make
from lockstep.collectives.pipeline_draw import as_svg, as_text
from lockstep.collectives.pipeline_prove import _stuck, failures_of, prove

KINDS = [
    ("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("zero_bubble", 1), ("zero_bubble", 2),
    ("zero_bubble_v", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "stages"), KINDS)
def test_every_schedule_is_proven_up_to_six_ranks_and_twelve_micro_batches(name, stages):
    for ranks in range(1, 7):
        for count in range(1, 13):
            proof = prove(name, ranks, count, stages)
            assert proof.failures == (), (name, ranks, count, proof.failures)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), ranks=st.integers(1, 12), count=st.integers(1, 40))
def test_any_schedule_is_proven_whatever_its_size(kind, ranks, count):
    assert prove(kind[0], ranks, count, kind[1]).failures == ()


def test_the_bubble_and_the_memory_are_what_the_papers_say():
    ranks, count = 4, 16
    made = {kind: make(kind[0], ranks, count, kind[1]) for kind in KINDS}
    bubble = classic_bubble(ranks, count)
    assert bubble == pytest.approx(3 / 19)
    assert made["gpipe", 1].idle_share == made["1f1b", 1].idle_share == pytest.approx(bubble)
    assert made["interleaved", 2].idle_share == pytest.approx(3 / (2 * count + 3))
    assert made["interleaved", 3].idle_share == pytest.approx(3 / (3 * count + 3))
    assert made["zero_bubble", 1].idle_share == pytest.approx(3 / (3 * count + 3))
    assert made["zero_bubble_v", 2].idle_share < 0.05
    assert [made["gpipe", 1].kept(rank) for rank in range(ranks)] == [16, 16, 16, 16]
    assert [made["1f1b", 1].kept(rank) for rank in range(ranks)] == [4, 3, 2, 1]
    assert [made["zero_bubble", 1].kept(rank) for rank in range(ranks)] == [4, 4, 4, 4]
    assert max(made["zero_bubble_v", 2].kept(rank) for rank in range(ranks)) <= 8  # of half the size


def test_there_and_back_the_first_rank_has_the_last_stage_too():
    assert make("zero_bubble_v", 3, 4, 2).placement == (0, 1, 2, 2, 1, 0)
    assert make("interleaved", 3, 4, 2).placement == (0, 1, 2, 0, 1, 2)


def changed(schedule, rank, row):
    return replace(schedule, rows=(*schedule.rows[:rank], tuple(row), *schedule.rows[rank + 1 :]))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_a_schedule_with_one_action_changed_is_found_out(data, kind):
    schedule = make(kind[0], 3, 5, kind[1])
    rank = data.draw(st.integers(0, 2))
    row = list(schedule.rows[rank])
    place = data.draw(st.integers(0, len(row) - 1))
    action = row[place]
    damage = data.draw(st.sampled_from(["drop", "double", "other stage", "other micro-batch", "earlier"]))
    if damage == "drop":
        row.pop(place)
    elif damage == "double":
        row.append(replace(action, start=row[-1].stop))
    elif damage == "other stage":
        row[place] = replace(action, stage=(action.stage + 1) % len(schedule.placement))
    elif damage == "other micro-batch":
        row[place] = replace(action, micro_batch=(action.micro_batch + 1) % 5)
    else:
        row[place] = replace(action, start=-1)
    assert failures_of(changed(schedule, rank, row))


def test_rows_that_would_wait_for_each_other_for_ever_are_found_out():
    schedule = make("1f1b", 2, 2)
    # Its last action first, and all of it later than anything it needs: only the order is wrong.
    order = [schedule.rows[0][-1], *schedule.rows[0][:-1]]
    late = [Action(100 + 2 * place, a.kind, a.stage, a.micro_batch) for place, a in enumerate(order)]
    held = [replace(action, start=action.start + 300) for action in schedule.rows[1]]
    rows = replace(schedule, rows=(tuple(late), tuple(held)))
    assert _stuck(rows) == [
        "rank 0 waits for ever to start B of stage 0, micro-batch 1",
        "rank 1 waits for ever to start F of stage 1, micro-batch 0",
    ]
    assert failures_of(rows)


def test_a_drawing_shows_every_action_and_every_idle_unit():
    schedule = make("1f1b", 2, 3)
    cells = [line.split()[2:] for line in as_text(schedule).splitlines()]
    assert cells == [
        ["F0", "F1", ".", ".", "B0", "B0", "F2", "B1", "B1", ".", "B2", "B2"],
        [".", "F0", "B0", "B0", "F1", "B1", "B1", "F2", "B2", "B2", ".", "."],
    ]
    image = as_svg(schedule)
    for row in schedule.rows:
        for action in row:
            assert f">{action.kind}{action.micro_batch}</text>" in image
    assert image.startswith("<svg") and "idle 25.0%" in image and "<script" not in image


def test_the_command_prints_draws_and_proves(capsys, tmp_path):
    from lockstep.cli import main

    words = ["collectives", "pipeline", "--world-size", "2", "--micro-batches", "3"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "rank 1 .  F0 B0 B0 F1" in printed and "idle 25.0%" in printed and "proven: " in printed
    assert main([*words, "--schedule", "zero_bubble_v", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["placement"] == [0, 1, 1, 0] and value["failures"] == []
    assert sum(len(row) for row in value["rows"]) == 3 * 4 * 3
    assert main([*words, "--svg", str(tmp_path / "drawing.svg")]) == 0
    assert (tmp_path / "drawing.svg").read_text().startswith("<svg")
    assert main([*words, "--stages-per-rank", "3"]) == 2
    assert "found 3, allowed with 1f1b: 1" in capsys.readouterr().err


def test_schedules_are_made_proven_and_drawn_without_torch():
    code = (
        "import sys; from lockstep.collectives import pipeline_draw, pipeline_prove as p; "
        "p.prove('zero_bubble_v', 3, 4, 2); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
