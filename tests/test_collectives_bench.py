"""`lockstep collectives bench`: ours and gloo's own, measured in one go and compared."""

import json

import pytest

from lockstep.bench import collectives as bench
from lockstep.cli import main
from lockstep.errors import UsageError


@pytest.mark.parametrize(
    ("word", "count"), [("4096", 4096), ("4KB", 4096), ("1mb", 1 << 20), ("2GB", 2 << 30), ("6B", 8)]
)
def test_sizes_are_read_in_whole_fp32_numbers(word: str, count: int) -> None:
    assert bench.size_of(word) == count


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "4 apples"], "--sizes: found '4 apples'"),
        (["--sizes", "0"], "--sizes: found '0'"),
        (["--transports", "pigeon"], "--transports: found 'pigeon', allowed: gloo, shm, tcp"),
        (["--algorithms", "pigeon"], "--algorithms: found 'pigeon'"),
        (["--ranks", "0"], "--ranks: found 0, allowed: 1 to 64"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collectives", "bench", *words]) == UsageError.exit_status
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_bench_checks_results_and_sets_prediction_beside_measurement(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--sizes", "4KB", "--rounds", "1", "--transports", "shm,tcp", "--json"]
    assert main(["collectives", "bench", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in result["rows"]}
    ours = ["direct on shm", "ring on shm", "direct on tcp", "ring on tcp"]
    assert list(rows) == [bench.GLOO, bench.COPIES, *ours]
    assert all(rows[name]["check"] == "ok" for name in (bench.GLOO, *ours))
    assert rows["direct on shm"]["wire_bytes"] == 4096
    assert rows["direct on shm"]["predicted_seconds"] is None, "it sends no messages that could be costed"
    assert all(rows[name]["predicted_seconds"] > 0 for name in ours[1:])
    text = bench.table(result)
    assert "gloo / ours" in text and "tcp: alpha" in text and text.count("4 KB") == 6
