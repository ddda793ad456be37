import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from families import make
from lockstep.catalog import collect, events, lineage, show, status, store
from lockstep.catalog.collect import Criteria
from lockstep.catalog.run import Run, all_runs
from lockstep.catalog.seal import verify_seal
from lockstep.cli import main
from lockstep.files import read_object, sha256_of

DAY = 86400.0


@pytest.fixture
def catalog(tmp_path):
    return tmp_path / "catalog"


def gc(capsys, catalog, *words):
    code = main(["gc", *words, "--catalog", str(catalog)])
    written = capsys.readouterr()
    assert "Traceback" not in written.err
    return code, written.out + written.err


def names(catalog):
    return {run.run_id for run in all_runs(catalog)}


def chosen(catalog, now=None, **criteria):
    made = collect.plan(catalog, Criteria(**criteria), now or time.time())
    return {row["run_id"] for row in made.runs}


def with_data(run, content=b"data" * 1000):
    """The run's train split becomes a link into the store, as prepare_data leaves it."""
    file = run.path / "new"
    file.write_bytes(content)
    digest = store.put(run.catalog, file)
    store.link(run.catalog, digest, run.data / "train.safetensors")
    described = {"files": {"train": {"sha256": digest}}, "identity": digest, "made_from": {}}
    (run.data / "data.json").write_text(json.dumps(described))
    store.remember(run.catalog, digest, described)
    return digest


def snapshot(folder):
    """Every name, with what stands behind it; the list's cache is nobody's record."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_size)
        for path in folder.rglob("*")
        if not path.name.startswith(".index-")
    }


def test_without_apply_nothing_is_changed_and_all_that_would_go_is_said(catalog, capsys):
    make(catalog, "one")
    with_data(make(catalog, "two", 2))
    before = snapshot(catalog)
    code, text = gc(capsys, catalog, "--status", "succeeded")
    assert code == 0 and snapshot(catalog) == before
    assert "would remove 2 runs, 1 stored file" in text and "--apply" in text
    code, text = gc(capsys, catalog)
    assert code == 0 and "no run is meant" in text and snapshot(catalog) == before


def test_runs_go_by_age_count_status_and_tag_and_all_that_is_given_must_hold(catalog):
    old = time.time() - 40 * DAY
    for number, (run_id, tag, sealed) in enumerate(
        [("a", "x", True), ("b", "y", True), ("c", "x", False), ("d", "x", True)]
    ):
        run = make(catalog, run_id, number, sealed=sealed, tag=tag)
        assert run.path.is_dir()
    now = old + 80 * DAY  # every run is 40 days old, seen from there
    assert chosen(catalog) == set()
    assert chosen(catalog, now, older_than="30d") == {"a", "b", "c", "d"}
    assert chosen(catalog, now, older_than="50d") == set()
    assert chosen(catalog, statuses=("succeeded",)) == {"a", "b", "d"}
    assert chosen(catalog, statuses=("killed", "failed")) == {"c"}
    assert chosen(catalog, tag="x") == {"a", "c", "d"}
    assert chosen(catalog, keep_last=1) == {"a", "b", "c"}
    assert chosen(catalog, tag="x", keep_last=1) == {"a", "c"}  # the newest of that tag stays
    assert chosen(catalog, statuses=("succeeded",), tag="x", keep_last=1) == {"a"}
    assert chosen(catalog, now, older_than="30d", tag="y") == {"b"}


def test_a_run_that_went_on_lately_is_not_old(catalog):
    run = make(catalog, "a")
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 35 * DAY))
    events.append(run, "started", time=later, attempt=2)
    assert chosen(catalog, time.time() + 40 * DAY, older_than="30d") == set()


def test_no_ancestor_of_a_run_that_stays_is_removed(catalog, capsys):
    one = make(catalog, "one", tag="old")
    two = make(catalog, "two", 2, one, tag="old")
    three = make(catalog, "three", 3, two, tag="new")
    make(catalog, "alone", 4, tag="old")
    code, text = gc(capsys, catalog, "--tag", "old", "--apply")
    assert code == 0 and names(catalog) == {"one", "two", "three"}
    assert "stays: two, because three came from it" in text and "stays: one, because" in text
    assert gc(capsys, catalog, "--status", "succeeded", "--apply")[0] == 0  # a whole family goes together
    assert names(catalog) == set() and three.path.exists() is False


def test_a_running_run_and_one_of_another_host_stay(catalog, capsys):
    running = make(catalog, "running", sealed=False)
    away = make(catalog, "away", 2, sealed=False)
    events.append(away, "started", attempt=1, process={"pid": 1, "host": "elsewhere", "boot_id": "x"})
    descriptor = status.hold(running)
    try:
        code, text = gc(capsys, catalog, "--older-than", "0s", "--apply")
        assert code == 0 and names(catalog) == {"running", "away"}
        assert "stays: running, because it is running" in text and "away, because it is unknown" in text
        assert gc(capsys, catalog, "--status", "running")[0] == 2
    finally:
        status.release(running, descriptor)


def test_a_tombstone_keeps_the_digests_and_the_lineage(catalog, tmp_path, capsys):
    one = make(catalog, "one", tag="old")
    two = make(catalog, "two", 2, one, tag="old")
    digests = {str(path.relative_to(two.path)): sha256_of(path) for path in two.checkpoints.rglob("*.*")}
    shutil.copy(two.model, tmp_path / "model.pt")
    gc(capsys, catalog, "--tag", "old", "--apply")
    left = read_object(catalog / ".tombstones" / "two.json")
    assert {name: entry["sha256"] for name, entry in left["files"].items()}.items() >= digests.items()
    assert (left["status"], left["tag"], left["why"]) == ("succeeded", "old", {"tag": "old"})
    assert left["parent"]["run_id"] == "one" and left["head"] and left["removed"]
    assert main(["explain", str(tmp_path / "model.pt"), "--catalog", str(catalog)]) == 0
    text = capsys.readouterr().out
    assert "two made it" in text and "removed with its run" in text and "resumed from one, collected" in text


def test_a_child_of_a_removed_run_still_shows_where_it_came_from(catalog, capsys):
    one = make(catalog, "one", tag="old")
    two = make(catalog, "two", 2, one)
    collect.finish(catalog)
    made = collect.plan(catalog, Criteria(tag="old"), time.time())
    assert made.runs == [] and made.kept  # so take it away by hand, as a user of rm would not
    shutil.rmtree(one.path)
    assert lineage.of(two)["ancestors"][0]["status"] == "absent"
    assert show.overview(two)["parent"]["run_id"] == "one"


def test_a_killed_run_is_recorded_as_killed(catalog, capsys):
    make(catalog, "k", sealed=False)
    assert gc(capsys, catalog, "--status", "killed", "--apply")[0] == 0
    left = read_object(catalog / ".tombstones" / "k.json")
    assert left["status"] == "killed" and "checkpoints/step-00000020/model.safetensors" in left["files"]


def test_stored_files_go_with_the_last_run_that_links_to_them(catalog, capsys):
    first, second, third = (make(catalog, name, seed) for seed, name in enumerate("abc"))
    shared = with_data(first)
    assert with_data(second) == shared
    own = with_data(third, b"other")
    kept = {path.name for path in store.folder(catalog).iterdir()}
    assert {shared, own} <= kept
    shutil.rmtree(third.path)
    assert gc(capsys, catalog, "--keep-last", "1", "--apply")[0] == 0  # c is gone, a goes, b stays
    assert names(catalog) == {"b"}
    assert (store.folder(catalog) / shared).is_file() and not (store.folder(catalog) / own).exists()
    assert [path.stem for path in (store.folder(catalog) / "identities").iterdir()] == [shared]
    assert (second.data / "train.safetensors").read_bytes() == b"data" * 1000


def test_a_stored_file_that_a_run_holds_a_copy_of_stays(catalog, capsys):
    run = make(catalog, "a")
    digest = with_data(run)
    content = (run.data / "train.safetensors").read_bytes()
    (run.data / "train.safetensors").unlink()
    (run.data / "train.safetensors").write_bytes(content)  # a file system without hard links
    assert gc(capsys, catalog, "--apply")[0] == 0
    assert (store.folder(catalog) / digest).is_file()


def test_the_store_is_left_alone_while_a_run_prepares_its_data(catalog, capsys):
    run = make(catalog, "a")
    digest = with_data(run)
    (run.data / "train.safetensors").unlink()
    (run.data / "data.json").unlink()
    lines = run.events.read_bytes().splitlines(keepends=True)
    run.events.write_bytes(lines[0])
    descriptor = status.hold(run)
    try:
        assert gc(capsys, catalog, "--apply")[0] == 0
        assert (store.folder(catalog) / digest).is_file()
    finally:
        status.release(run, descriptor)
    assert gc(capsys, catalog, "--apply")[0] == 0
    assert not (store.folder(catalog) / digest).exists()


def test_bytes_that_a_kept_run_shares_are_not_counted_as_freed(catalog):
    one = make(catalog, "one", tag="old")
    two = make(catalog, "two", 2, tag="new")
    with_data(one)
    without = collect.plan(catalog, Criteria(tag="old"), time.time())
    with_data(two)
    made = collect.plan(catalog, Criteria(tag="old"), time.time())
    assert without.freed_bytes - made.freed_bytes == 4000 and made.stored == []


KILLED_AT = """
import os, signal, sys
from lockstep.cli import main
left = int(sys.argv[1])
def count(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
sys.exit(main(["gc", "--tag", "old", "--apply", "--catalog", sys.argv[2]]))
"""


def test_killed_at_any_point_no_half_run_reads_as_one_and_the_next_gc_finishes(tmp_path, capsys):
    template = tmp_path / "template"
    make(template, "old", 1, tag="old")
    make(template, "new", 2, tag="new")
    before = {path.relative_to(template / "old") for path in (template / "old").rglob("*")}
    point, done = 0, False
    while not done:
        catalog = tmp_path / f"catalog-{point}"
        shutil.copytree(template, catalog)
        ended = subprocess.run(
            [sys.executable, "-c", KILLED_AT, str(point), str(catalog)],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        done = ended.returncode == 0
        assert done or ended.returncode == -signal.SIGKILL, ended.stderr
        if (catalog / "old").exists():
            there = {path.relative_to(catalog / "old") for path in (catalog / "old").rglob("*")}
            assert before <= there
            assert verify_seal(Run(catalog / "old")) == []
        assert names(catalog) <= {"old", "new"}
        assert gc(capsys, catalog, "--tag", "old", "--apply")[0] == 0
        assert names(catalog) == {"new"}
        assert not list(catalog.glob(".removing-*")) and not list(catalog.rglob(".tmp-*"))
        left = read_object(catalog / ".tombstones" / "old.json")
        assert len(left["files"]) > 8 and left["status"] == "succeeded"
        shutil.rmtree(catalog)
        point += 4  # every fourth point keeps this quick
    assert point > 12


def test_two_collectors_do_not_work_at_the_same_time(catalog, capsys):
    make(catalog, "one")
    with collect.alone(catalog):
        code, text = gc(capsys, catalog, "--status", "succeeded", "--apply")
    assert code == 2 and "another lockstep gc" in text and names(catalog) == {"one"}


def test_a_run_that_got_a_child_after_it_was_chosen_is_spared(catalog):
    one = make(catalog, "one", tag="old")
    criteria = Criteria(tag="old")
    made = collect.plan(catalog, criteria, time.time())
    make(catalog, "two", 2, one)
    assert list(collect.apply(catalog, made, criteria)) == ["one stays: two has come from it meanwhile"]
    assert names(catalog) == {"one", "two"}


@pytest.mark.parametrize("clock", ["right", "of the child behind"])
def test_all_ancestors_of_a_run_that_is_spared_in_the_end_are_spared(catalog, clock):
    first = make(catalog, "a")
    second = make(catalog, "b", 2, first)
    child = make(catalog, "c", 3, second)
    make(catalog, "d", 4)
    criteria = Criteria(keep_last=0)
    made = collect.plan(catalog, criteria, time.time())
    if clock != "right":
        made.runs.reverse()  # rows are sorted by the times that the runs recorded
    held = status.hold(child)
    try:
        said = list(collect.apply(catalog, made, criteria))
    finally:
        status.release(child, held)
    assert names(catalog) == {"a", "b", "c"} and "c stays: run c is running already" in said[0]
    assert said[1:] == ["b stays: c came from it, and stays", "a stays: b came from it, and stays"]


def test_a_link_in_place_of_a_run_is_never_followed(catalog, tmp_path, capsys):
    make(catalog, "one")
    outside = make(tmp_path / "other", "outside")
    (catalog / "linked").symlink_to(outside.path)
    (catalog / "one" / "logs" / "link").symlink_to(outside.path)
    (catalog / ".removing-x-0123456789ab").symlink_to(outside.path)
    gc(capsys, catalog, "--older-than", "0s", "--apply")
    assert outside.events.is_file() and len(list(outside.path.rglob("*"))) > 10


@pytest.mark.parametrize(
    "words",
    [
        ["--older-than", "soon"],
        ["--older-than", "-3d"],
        ["--keep-last", "-1"],
        ["--status", "dead"],
        ["--keep-last", "x"],
    ],
)
def test_criteria_that_mean_nothing_are_refused(catalog, capsys, words):
    make(catalog, "one")
    try:
        assert gc(capsys, catalog, *words, "--apply")[0] == 2
    except SystemExit as error:
        assert error.code == 2
    assert names(catalog) == {"one"} and os.listdir(catalog / "one")


def test_an_empty_catalog_has_nothing_to_collect(tmp_path, capsys):
    code, text = gc(capsys, tmp_path / "none", "--older-than", "1d", "--apply")
    assert code == 0 and "nothing to collect" in text
    assert Run(tmp_path / "none").path.exists() is False
