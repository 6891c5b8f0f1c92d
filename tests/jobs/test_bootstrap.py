"""Intervals: draws are Poisson's and follow from seed, replicate and image alone; sums are exact."""

import numpy as np
import pyarrow as pa
import pytest

from jobs.common import bootstrap
from jobs.common.bootstrap import REPLICATES, SUMS, UNIT, WIDTH, Interval, interval, p_value, scores_of, weights
from nic_model.metrics.bleu import bleu

IMAGES = np.random.default_rng(0).integers(0, 2**64, 2_000, dtype=np.uint64)

SEGMENTS = pa.schema([
    ("image", pa.int64()),
    *((name, pa.string()) for name in ("model_id", "decode_id", "missing")),
    ("bleu_counts", pa.list_(pa.int64())),
    ("rouge_l", pa.float64()),
    ("cider", pa.float64()),
    ("slice:lang", pa.string()),
])  # fmt: skip


def segment(image: int, model: str = "m", lang: str | None = "en") -> dict[str, object]:
    """One in five has no score."""
    rng = np.random.default_rng([image, len(model)])
    found = {"image": int(IMAGES[image].astype(np.int64)), "model_id": model, "decode_id": "d", "slice:lang": lang}
    if image % 5 == 4:
        return {**found, "missing": "caption"}
    counts = sorted(rng.integers(1, 12, 10).tolist())
    return {**found, "bleu_counts": counts, "rouge_l": rng.uniform(0, 100), "cider": rng.uniform(0, 1000)}


def sums_of(rows: list[dict[str, object]], size: int, by: tuple[str, ...] = ()) -> dict[tuple, np.ndarray]:
    """As Spark adds them up, from batches of `size`."""
    batches = [pa.RecordBatch.from_pylist(rows[at : at + size], SEGMENTS) for at in range(0, len(rows), size)]
    totals: dict[tuple, np.ndarray] = {}
    for batch in bootstrap.sum_segments(batches, by, seed=7):
        assert batch.schema == SUMS
        group = tuple(batch.column(name)[0].as_py() for name in SUMS.names[:4])
        totals[group] = totals.get(group, 0) + bootstrap.read_sums(batch.column("sums")[0])
    return totals


def test_weights_are_poisson() -> None:
    drawn = weights(IMAGES, seed=0)
    assert drawn.shape == (len(IMAGES), REPLICATES)
    for k, share in enumerate((0.3679, 0.3679, 0.1839, 0.0613, 0.0153)):
        assert np.mean(drawn == k) == pytest.approx(share, abs=0.002)
    assert drawn.mean() == pytest.approx(1, abs=0.003)
    assert np.corrcoef(drawn[:, :50].T)[np.triu_indices(50, 1)] == pytest.approx(0, abs=0.12)


def test_weights_follow_from_the_image_and_the_seed() -> None:
    drawn = weights(IMAGES, seed=3)
    assert np.array_equal(weights(IMAGES[5:9], seed=3), drawn[5:9])
    assert not np.array_equal(weights(IMAGES, seed=4), drawn)


def test_sums() -> None:
    rows = [segment(image) for image in range(50)]
    (sums,) = sums_of(rows, 50).values()
    assert sums.shape == (1 + REPLICATES, WIDTH)
    assert sums[0, :2].tolist() == [40, 10]
    scored = [row for row in rows if "missing" not in row]
    scores = scores_of(sums)
    total = np.sum([row["bleu_counts"] for row in scored], axis=0)
    assert [scores[f"bleu_{n}"][0] for n in (1, 2, 3, 4)] == list(bleu(total))
    for metric in ("rouge_l", "cider"):
        assert scores[metric][0] == pytest.approx(np.mean([row[metric] for row in scored]), abs=1 / UNIT)
    drawn = weights(IMAGES[[image for image in range(50) if image % 5 != 4]], seed=7)
    for replicate in (0, 1, 999):
        expected = np.average([row["cider"] for row in scored], weights=drawn[:, replicate])
        assert scores["cider"][1 + replicate] == pytest.approx(expected, abs=1 / UNIT)


def test_sums_do_not_depend_on_batches_or_order() -> None:
    rows = [segment(image, model, "en" if image % 3 else None) for image in range(700) for model in ("m", "other")]
    one = sums_of(rows, len(rows), by=("lang",))
    assert {group[0] for group in one} == {"m", "other"}
    assert {group[2:] for group in one} == {(None, None), ("lang", "en"), ("lang", None)}
    many = sums_of(rows[::-1], 33, by=("lang",))
    assert all(np.array_equal(one[group], many[group]) for group in one | many)
    parts = one["m", "d", "lang", "en"] + one["m", "d", "lang", None]
    assert np.array_equal(parts, one["m", "d", None, None])


def test_slices_of_many_values_are_handed_on_once() -> None:
    rows = [segment(image % 2000, lang=str(image % 300)) for image in range(3000)]
    batches = [pa.RecordBatch.from_pylist(rows[at : at + 100], SEGMENTS) for at in range(0, len(rows), 100)]
    assert len(list(bootstrap.sum_segments(batches, ("lang",), seed=7))) == 1 + 300


def test_scores_of_each_group() -> None:
    rows = [segment(image, lang="en" if image % 3 else None) for image in range(50)]
    sums = sums_of(rows, 50, by=("lang",))
    packed = [bootstrap._rows(item) for item in sorted(sums.items(), key=str)]
    found = [row for batch in bootstrap.score_sums(packed, ["bleu_4", "cider"]) for row in batch.to_pylist()]
    assert len(found) == 2 * len(sums) == 6
    for row in found:
        right = sums[tuple(row[name] for name in SUMS.names[:4])]
        assert (row["n_segments"], row["n_missing"]) == tuple(right[0, :2])
        assert Interval(row["score"], row["low"], row["high"]) == interval(scores_of(right)[row["metric"]])


def test_many_groups_are_handed_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [segment(image, lang=str(image)) for image in range(40)]
    at_once = sums_of(rows, 10, by=("lang",))
    monkeypatch.setattr(bootstrap, "_HELD", 5)
    in_parts = sums_of(rows, 10, by=("lang",))
    assert all(np.array_equal(at_once[group], in_parts[group]) for group in at_once | in_parts)


def test_sums_of_tasks_are_added_by_group() -> None:
    parts = [
        batch
        for part in range(3)
        for batch in bootstrap.sum_segments(
            [pa.RecordBatch.from_pylist([segment(at, model) for at in range(part, 30, 3) for model in "mn"], SEGMENTS)],
            (),
            seed=7,
        )
    ]
    rows = pa.Table.from_batches(parts).sort_by("model_id").to_batches(max_chunksize=2)
    added = {batch["model_id"][0].as_py(): bootstrap.read_sums(batch["sums"][0]) for batch in bootstrap.add_sums(rows)}
    for model in "mn":
        (whole,) = sums_of([segment(at, model) for at in range(30)], 30).values()
        assert np.array_equal(added[model], whole)


def test_nothing_scored() -> None:
    (sums,) = sums_of([segment(4), segment(9)], 2).values()
    assert sums[0, :2].tolist() == [0, 2]
    for values in scores_of(sums).values():
        assert np.isnan(values).all()
        assert interval(values) == Interval(None, None, None)
        assert p_value(values) is None


def test_one_segment_has_no_spread() -> None:
    (sums,) = sums_of([segment(0)], 1).values()
    for values in scores_of(sums).values():
        found = interval(values)
        assert found.low == pytest.approx(found.score)
        assert found.high == pytest.approx(found.score)


def test_interval_is_that_of_theory() -> None:
    """Of a mean: 1.96 standard errors to either side."""
    rows = [segment(image) for image in range(2_000)]
    (sums,) = sums_of(rows, 2_000).values()
    found = interval(scores_of(sums)["rouge_l"])
    scored = [row["rouge_l"] for row in rows if "missing" not in row]
    error = np.std(scored) / np.sqrt(len(scored))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


CASES = [
    ([0.5, *[0.1] * 999], 0.002),  # never on the other side
    ([0.5, *[0.1] * 500, *[-0.1] * 500], 1.0),
    ([0.5, *[0.1] * 979, *[-0.1] * 20], 0.042),
    ([-0.5, *[-0.1] * 979, *[0.1] * 20], 0.042),
    ([0.0, *[0.0] * 999], 1.0),
    ([0.5, *[0.1] * 499, *[np.nan] * 500], 0.004),  # empty draws do not count
]


@pytest.mark.parametrize(("differences", "expected"), CASES)
def test_p_value(differences: list[float], expected: float) -> None:
    assert p_value(np.array(differences)) == pytest.approx(expected, rel=1e-9)
