"""What every compressor promises; `test_compressor_codes.py` and `test_compressed_training.py` go on."""

import math

import pytest
import torch

from compressing import CLASSES, NAMES, SHAPES, WITH_FEEDBACK, gradients, part, reduced
from lockstep.collectives.schedule import chunk_bounds
from transport_ranks import in_threads, opened


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_every_rank_ends_with_identical_bits(tmp_path, name, ranks, dtype):
    results = reduced(tmp_path, name, ranks, 3, dtype=dtype)
    for found, _, _ in results[1:]:
        for mine, first in zip(found, results[0][0], strict=True):
            assert torch.equal(mine.view(torch.uint8), first.view(torch.uint8))
    assert results[0][0][0].dtype == dtype


@pytest.mark.parametrize("shapes", [((1,),), ((0,), (2,)), ((3, 2),), ((97,), (1,))], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_uneven_and_tiny_buckets_are_reduced(tmp_path, name, shapes):
    results = reduced(tmp_path, name, 4, 2, shapes=shapes)
    for found, _, _ in results:
        assert all(torch.equal(mine, first) for mine, first in zip(found, results[0][0], strict=True))
        assert found[0][-len(shapes) :].tolist() == [4.0] * len(shapes)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("fp16", {}, 2**-10),
        ("bf16", {}, 2**-7),
        ("int8", {}, 2 / 127),
        ("topk", {"ratio": 1.0}, 1e-6),
        ("powersgd", {"rank": 64}, 1e-6),
    ],
)
def test_the_sum_is_the_plain_sum_up_to_what_the_compressor_rounds(tmp_path, name, options, tolerance):
    results = reduced(tmp_path, name, 3, 1, options)
    parts = [gradients(rank, 0).double() for rank in range(3)]
    largest = max(each.abs().max() for each in parts)  # of a chunk or block, at the most
    found = results[0][0][0][:-6].double()
    assert (found - sum(parts)).abs().max() <= tolerance * 3 * largest


@pytest.mark.parametrize("name", [*WITH_FEEDBACK])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_error_feedback_loses_nothing(tmp_path, name, ranks):
    steps = 7
    results = reduced(tmp_path, name, ranks, steps, dtype=torch.float64)
    given_ = sum(gradients(rank, step, dtype=torch.float64) for rank in range(ranks) for step in range(steps))
    sent = sum(found[:-6] for found in results[0][0])
    left = sum(residual for _, residual, _ in results)
    assert left.abs().max() > 0.01
    assert torch.allclose(sent + left, given_, rtol=0, atol=1e-12)


def test_error_feedback_of_top_k_is_exact(tmp_path):
    results = reduced(tmp_path, "topk", 3, 9, whole=True)  # whole numbers: no sum is rounded
    given_ = sum(gradients(rank, step, whole=True) for rank in range(3) for step in range(9))
    sent = sum(found[:-6] for found in results[0][0])
    assert torch.equal(sent + sum(residual for _, residual, _ in results), given_)


@pytest.mark.parametrize("name", WITH_FEEDBACK)
def test_without_error_feedback_nothing_is_kept(tmp_path, name):
    for _, residual, _ in reduced(tmp_path, name, 2, 2, {"error_feedback": False}):
        assert residual is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_marks_of_unused_parameters_are_exact_and_their_leftovers_wait(tmp_path, name, ranks):
    """The second parameter is never used, the first by the last rank alone from the third step on."""

    def marks(rank, step):
        return [float(step < 2 or rank == ranks - 1), 0.0, 1.0, 1.0, 1.0, 1.0]

    results = reduced(tmp_path, name, ranks, 4, marks=marks, whole=True)
    last = results[0][0][-1]
    assert last[-6:].tolist() == [1.0, 0.0, ranks, ranks, ranks, ranks]
    assert not last[204:216].any()
    if name == "topk":
        used = [torch.tensor(marks(rank, step)) for rank in range(ranks) for step in range(4)]
        wide = torch.tensor([math.prod(shape) for shape in SHAPES])
        given_ = [gradients(rank, step, whole=True) for rank in range(ranks) for step in range(4)]
        total = sum(
            each * mark.repeat_interleave(wide) for each, mark in zip(given_, used, strict=True)
        )  # nothing is lost either
        sent = sum(found[:-6] for found in results[0][0])
        assert torch.equal(sent + sum(residual for _, residual, _ in results), total)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 207, 1000, -1])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_never_silently_becomes_a_number(tmp_path, name, place, bad):
    def work(rank):
        ours = opened("queue", rank, 2, tmp_path)
        compressor = CLASSES[name]()
        results = []
        for step in range(2):
            values = gradients(rank, step)
            if step == 1 and rank == 1:
                values[place] = bad
            bucket = part(values, rank=rank, ranks=2)
            compressor.reduce(bucket, ours)
            results.append(bucket.gradients.isfinite().all())
        ours.close()
        return results

    for first, second in in_threads(2, work):
        assert first
        assert not second


ELEMENTS, PARAMETERS = 1517, len(SHAPES)


def bytes_of_codes(ranks, size):
    """Of rank 0: every other rank's chunk as codes with the marks, then its own chunk's to every other."""
    counts = [stop - start for start, stop in chunk_bounds(ELEMENTS, ranks)]
    return sum(size(count) + PARAMETERS for count in counts[1:]) + (ranks - 1) * size(counts[0])


FORMULAS = {
    "fp16": lambda ranks: bytes_of_codes(ranks, lambda count: 2 * count + 4),
    "bf16": lambda ranks: bytes_of_codes(ranks, lambda count: 2 * count),
    "int8": lambda ranks: bytes_of_codes(ranks, lambda count: count + 4 * math.ceil(count / 256)),
    "topk": lambda ranks: (ranks - 1) * (round(0.01 * ELEMENTS) * 8 + PARAMETERS),
}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", FORMULAS)
def test_bytes_on_the_wire_are_those_that_the_docstring_says(tmp_path, name, ranks):
    assert reduced(tmp_path, name, ranks, 2)[0][2] == FORMULAS[name](ranks)


def test_bytes_of_power_sgd_are_its_two_factors_and_what_is_not_compressed(tmp_path):
    factors = 2 * (17 + 12) + 2 * (5 + 12) + 2 * (40 + 31)
    rest = 12 + 1 + 0
    assert reduced(tmp_path, "powersgd", 2, 2, transport="queue")[0][2] == 4 * (factors + rest + PARAMETERS)
