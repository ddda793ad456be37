"""How far off a code is: bounds that hold for any numbers, and what each compressor chooses to send."""

from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressing import CLASSES, gradients, part
from transport_ranks import in_threads, opened

FLOATS = st.lists(st.floats(width=32, min_value=-(2.0**126), max_value=2.0**126), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(FLOATS)
def test_bf16_rounds_to_eight_bits(values):
    before = torch.tensor(values)
    codec = CLASSES["bf16"]()
    after = codec.decode(codec.encode(before), before)
    assert torch.all((after - before).abs().double() <= before.abs().double() * 2**-8 + 2.0**-134)


@settings(max_examples=300, deadline=None)
@given(FLOATS)
def test_fp16_rounds_to_eleven_bits_at_any_magnitude(values):
    before = torch.tensor(values)
    codec = CLASSES["fp16"]()
    after = codec.decode(codec.encode(before), before)
    largest = before.abs().max().double()
    allowed = before.abs().double() * 2**-11 + largest * 2.0**-38 + 2.0**-149
    assert after.isfinite().all()
    assert torch.all((after.double() - before.double()).abs() <= allowed)


def test_fp16_keeps_eleven_bits_of_elements_far_smaller_than_the_largest():
    before = torch.tensor([1.0, 1.7 * 2.0**-28, -1.3 * 2.0**-20])
    codec = CLASSES["fp16"]()
    after = codec.decode(codec.encode(before), before)
    assert torch.all(((after - before) / before).abs() <= 2**-11)


def test_fp16_neither_overflows_nor_loses_small_gradients(tmp_path):
    for scale in (1e30, 1e-30):

        def work(rank, scale=scale):
            ours = opened("queue", rank, 4, tmp_path)
            bucket = part(gradients(rank, 0) * scale, rank=rank, ranks=4)
            CLASSES["fp16"]().reduce(bucket, ours)
            ours.close()
            return bucket.gradients / scale

        exact = sum(gradients(rank, 0) for rank in range(4))
        for found in in_threads(4, work):
            assert torch.allclose(found, exact, rtol=0, atol=0.01)


@settings(max_examples=300, deadline=None)
@given(FLOATS, st.integers(1, 50))
def test_int8_is_off_by_half_a_step_of_its_block_and_keeps_exactly_that(values, block):
    before = torch.tensor(values)
    codec = CLASSES["int8"](block_elements=block)
    code = codec.encode(before)
    assert code.numel() == codec.size(before.numel())
    after = codec.decode(code, before)
    left = before - after
    assert torch.equal(after.double() + left.double(), before.double())
    for start in range(0, len(values), block):
        piece = slice(start, start + block)
        largest = before[piece].abs().max().double()
        off = (after[piece].double() - before[piece].double()).abs().max()
        assert off <= largest / 254 * (1 + 1e-5) + 2.0**-140  # the last is below what a scale can say


@settings(max_examples=200, deadline=None)
@given(FLOATS, st.floats(0.01, 1))
def test_top_k_sends_the_largest_unchanged_and_keeps_the_rest(values, ratio):
    before = torch.tensor(values)
    compressor = CLASSES["topk"](ratio=ratio)
    bucket = part(before.clone(), ((len(values),),))
    compressor.reduce(bucket, opened("queue", 0, 1, Path("nowhere")))
    sent, left = bucket.gradients, compressor.residuals.of(0)
    count = compressor.chosen(len(values))
    assert torch.equal(sent + left, before)
    largest = before.abs().sort().values[-count:]
    assert torch.equal(sent.abs().sort().values[-count:], largest)
    assert int((sent != 0).sum()) == int((largest != 0).sum())
    assert not ((sent != 0) & (left != 0)).any()


def test_power_sgd_finds_a_matrix_of_its_rank_exactly(tmp_path):
    left, right = torch.randn(40, 2).double(), torch.randn(2, 30).double()
    bucket = part((left @ right).view(-1), ((40, 30),))
    compressor = CLASSES["powersgd"](rank=2)
    compressor.reduce(bucket, opened("queue", 0, 1, tmp_path))
    assert torch.allclose(bucket.gradients.view(40, 30), left @ right, atol=1e-10)
    assert compressor.residuals.of(0).abs().max() < 1e-10


def test_power_sgd_with_a_warm_start_converges_to_the_best_of_its_rank(tmp_path):
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(matrix)
    best = values[2:].square().sum().sqrt()
    off = {}
    for warm in (True, False):
        compressor = CLASSES["powersgd"](rank=2, error_feedback=False, warm_start=warm)
        for _ in range(60):
            bucket = part(matrix.reshape(-1).clone(), ((40, 30),))
            compressor.reduce(bucket, opened("queue", 0, 1, tmp_path))
        off[warm] = (bucket.gradients.view(40, 30) - matrix).norm()
    assert off[True] <= best * 1.001
    assert off[False] > best * 1.02


def test_power_sgd_recovers_from_a_step_without_gradients(tmp_path):
    ours = opened("queue", 0, 1, tmp_path)
    compressor = CLASSES["powersgd"]()
    matrix = torch.randn(40, 30)
    for values in (torch.zeros(1200), matrix.reshape(-1), matrix.reshape(-1)):
        bucket = part(values.clone(), ((40, 30),))
        compressor.reduce(bucket, ours)
    assert bucket.gradients.norm() > 0.1 * matrix.norm()
