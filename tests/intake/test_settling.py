"""Settling: when a file counts as no longer changing."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.intake.settling import Rota, Settling, Sighting
from inbox_daemon.spool.entries import Signature

FIRST = Signature(dev=1, ino=2, size=3, mtime_ns=4, ctime_ns=5)


def sighting(name: str = "a.jsonl", signature: Signature = FIRST, *, own: bool = True) -> Sighting:
    """Make a sighting, by default of an unchanged file of our own."""
    return Sighting(name, signature, own)


def test_first_sighting_never_settles() -> None:
    """A file seen once is not settled, however late it is."""
    assert Settling(2.0).observe(1000.0, [sighting()]) == []


def test_unchanged_file_settles_after_the_time() -> None:
    """A file is settled by the first scan that spans the time since it was first seen."""
    settling = Settling(2.0)
    settled = [settling.observe(now, [sighting()]) for now in (10.0, 11.0, 11.9, 12.0)]
    assert settled == [[], [], [], ["a.jsonl"]]


def test_foreign_file_waits_five_fold() -> None:
    """A file on which we may take no lease has to be quiet five times as long."""
    settling = Settling(2.0)
    settled = [settling.observe(now, [sighting(own=False)]) for now in (0.0, 2.0, 9.9, 10.0)]
    assert settled == [[], [], [], ["a.jsonl"]]


def test_foreign_factor_can_be_chosen() -> None:
    """The factor for foreign files is the caller's to set."""
    settling = Settling(2.0, foreign_factor=1)
    settling.observe(0.0, [sighting(own=False)])
    assert settling.observe(2.0, [sighting(own=False)]) == ["a.jsonl"]


@pytest.mark.parametrize("field", Signature._fields)
def test_any_change_restarts_the_time(field: str) -> None:
    """A change of any part of the signature restarts the time."""
    settling = Settling(2.0)
    changed = FIRST._replace(**{field: 99})
    settling.observe(0.0, [sighting()])
    assert settling.observe(2.0, [sighting(signature=changed)]) == []
    assert settling.observe(3.9, [sighting(signature=changed)]) == []
    assert settling.observe(4.0, [sighting(signature=changed)]) == ["a.jsonl"]


def test_change_and_change_back_restarts_the_time() -> None:
    """A signature that changes back to an earlier one restarts the time too."""
    settling = Settling(2.0)
    settling.observe(0.0, [sighting()])
    settling.observe(1.0, [sighting(signature=FIRST._replace(size=9))])
    assert settling.observe(2.0, [sighting()]) == []


def test_vanished_name_is_forgotten() -> None:
    """A file that was gone for one scan has to settle from the start once it is back."""
    settling = Settling(2.0)
    settling.observe(0.0, [sighting()])
    settling.observe(1.0, [])
    assert len(settling) == 0
    assert settling.observe(2.0, [sighting()]) == []


def test_settled_name_is_returned_until_forgotten() -> None:
    """A settled file that could not be taken yet is offered by the next scan again."""
    settling = Settling(1.0)
    settling.observe(0.0, [sighting()])
    assert settling.observe(1.0, [sighting()]) == settling.observe(2.0, [sighting()]) == ["a.jsonl"]
    settling.forget("a.jsonl")
    assert settling.observe(3.0, [sighting()]) == []


def test_forgetting_an_unknown_name_is_fine() -> None:
    """Forgetting a name that was never seen changes nothing."""
    Settling(1.0).forget("unknown.jsonl")


def test_quiet_time_is_in_seconds() -> None:
    """The time since the last change is known for a name seen, and 0 for one that is not."""
    settling = Settling(1.0)
    settling.observe(5.0, [sighting()])
    settling.observe(7.0, [sighting()])
    assert settling.unchanged_for("a.jsonl", 12.5) == 7.5
    assert settling.unchanged_for("b.jsonl", 12.5) == 0.0


def test_clock_that_stands_or_steps_back_settles_nothing() -> None:
    """A clock that does not advance settles nothing and gives no negative time."""
    settling = Settling(1.0)
    settling.observe(5.0, [sighting()])
    assert settling.observe(5.0, [sighting()]) == []
    assert settling.observe(4.0, [sighting()]) == []
    assert settling.unchanged_for("a.jsonl", 4.0) == 0.0


def test_times_beyond_64_bits_are_only_times() -> None:
    """A sender may set an mtime whose nanoseconds exceed 64 bits; it settles as any other."""
    absurd = FIRST._replace(mtime_ns=2**90, ino=2**64 - 1)
    settling = Settling(1.0)
    settling.observe(0.0, [sighting(signature=absurd)])
    assert settling.observe(1.0, [sighting(signature=absurd)]) == ["a.jsonl"]


def test_one_scan_looks_at_each_name_a_fixed_number_of_times() -> None:
    """Work grows with the number of names and not with its square: names hash once or twice."""
    hashed = 0

    class Name(str):
        __slots__ = ()

        def __hash__(self) -> int:
            nonlocal hashed
            hashed += 1
            return super().__hash__()

        def __eq__(self, other: object) -> bool:
            return super().__eq__(other)

    count = 100_000
    sightings = [sighting(Name(f"{number}.jsonl")) for number in range(count)]
    settling = Settling(1.0)
    settling.observe(0.0, sightings)
    hashed = 0
    assert len(settling.observe(1.0, iter(sightings))) == count
    assert hashed <= 3 * count


def test_signature_follows_the_file(tmp_path: Path) -> None:
    """A signature taken from a real file changes when a byte is added."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}")
    before = Signature.of(path.stat())
    path.write_bytes(b"{}\n")
    after = Signature.of(os.stat(path))  # noqa: PTH116 - either form of stat will do
    assert (before.ino, before.dev) == (after.ino, after.dev)
    assert (before.size, after.size) == (2, 3)


@given(
    st.lists(
        st.tuples(
            st.floats(min_value=0.0, max_value=3.0),
            st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 2), st.booleans())),
        ),
        max_size=30,
    )
)
def test_settled_means_quiet_for_the_whole_time(
    scans: list[tuple[float, dict[str, tuple[int, bool]]]],
) -> None:
    """Whatever happens, a settled name was in each scan of its time, with one signature."""
    settling = Settling(2.0)
    now = 0.0
    history: list[tuple[float, dict[str, tuple[int, bool]]]] = []
    for step, files in scans:
        now += step
        history.append((now, files))
        seen = [
            sighting(name, FIRST._replace(size=size), own=own)
            for name, (size, own) in files.items()
        ]
        for name in settling.observe(now, seen):
            size, own = files[name]
            since = now
            for at, earlier in reversed(history):
                if earlier.get(name, (None,))[0] != size:
                    break
                since = at
            assert now - since >= (2.0 if own else 10.0)


# -- more files than are looked at ---------------------------------------------------


def test_a_folder_of_few_files_is_looked_at_whole() -> None:
    """Files that all fit are chosen in every scan, in the folder's order."""
    rota = Rota(3, 10)
    assert [rota.choose(now, "abc") for now in (0, 1, 50)] == [list("abc")] * 3
    assert rota.choose(51, "") == []


def test_each_file_of_many_gets_its_whole_turn() -> None:
    """The same files are checked for a whole turn, then the next ones, then the first again."""
    rota = Rota(3, 10)
    chosen = ["".join(rota.choose(now, "abcdefgh")) for now in range(0, 50, 5)]
    assert chosen == ["abc", "abc", "abc", "def", "def", "gh", "gh", "abc", "abc", "def"]


def test_a_folder_that_shrinks_is_looked_at_from_its_front() -> None:
    """Files that are gone do not use up a turn."""
    rota = Rota(3, 10)
    for now in (0, 11, 12):
        rota.choose(now, "abcdefgh")
    assert rota.choose(13, "ab") == []
    assert rota.choose(14, "ab") == ["a", "b"]
