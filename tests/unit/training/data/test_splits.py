"""Parts by time, by group, by a column, in repeated folds, and of files that are given."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import TimeSeriesSplit

from tests.unit.training.builders import dataset, only, run_all, spec, start
from tests.unit.training.data.test_datasets import load
from tuner_service.definition.trial_spec import SplitSpec
from tuner_service.errors import DataError
from workers.training.data.split import split_rows
from workers.training.engine.engine import Engine, EngineSettings

ROWS = 120
GENERATOR = np.random.default_rng(3)
OWNER = [f"c{n}" for n in GENERATOR.integers(0, 25, ROWS)]
DAY = [f"2024-{1 + n // 28:02}-{1 + n % 28:02}" for n in GENERATOR.permutation(ROWS)]


def rows_of(beside: list[str] | None, **changes: Any) -> Any:
    given = {"validation": 0.25, "test": 0.2, "seed": 0, "stratify": False, "column": "c"}
    return split_rows(
        ROWS if beside is None else len(beside),
        SplitSpec.model_validate(given | changes),
        classes=None,
        own_test=False,
        beside=beside,
    )


def test_parts_in_an_order_follow_each_other() -> None:
    found = rows_of(DAY, by="order")
    days = [sorted(np.array(DAY)[part]) for part in (found.train, found.validation, found.test)]
    assert days[0] + days[1] + days[2] == sorted(DAY)
    assert [len(part) for part in days] == [66, 30, 24]


@pytest.mark.parametrize("fold", range(4))
def test_folds_in_an_order_are_scikit_learns(fold: int) -> None:
    beside = [str(n) for n in range(ROWS)]  # "10" comes after "9"
    found = rows_of(beside, by="order", folds=4, fold=fold)
    train, validation = list(TimeSeriesSplit(4).split(np.zeros(96)))[fold]
    assert found.train.tolist() == train.tolist()
    assert found.validation.tolist() == validation.tolist()
    assert found.test.tolist() == list(range(96, ROWS))


def test_rows_of_one_moment_stay_together() -> None:
    beside = [str(n // 7) for n in range(ROWS)]
    found = rows_of(beside, by="order")
    parts = [{beside[row] for row in part} for part in (found.train, found.validation, found.test)]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]
    assert sum(map(len, (found.train, found.validation, found.test))) == ROWS


@pytest.mark.parametrize("folds", [{}, *({"folds": 3, "repeats": 2, "fold": n} for n in range(6))])
def test_a_group_is_in_one_part_only(folds: dict[str, int]) -> None:
    found = rows_of(OWNER, by="group", **folds)
    parts = [{OWNER[row] for row in part} for part in (found.train, found.validation, found.test)]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    sizes = [len(found.train), len(found.validation), len(found.test)]
    assert sum(sizes) == ROWS
    wanted = [64, 32, 24] if folds else [66, 30, 24]
    assert sizes == pytest.approx(wanted, abs=7)


@pytest.mark.parametrize("by", [{}, {"by": "group"}])
def test_repeated_folds_share_the_test_part_and_nothing_else(by: dict[str, str]) -> None:
    beside = OWNER if by else None
    runs = [rows_of(beside, folds=3, repeats=2, fold=n, **by) for n in range(6)]
    assert len({tuple(run.test) for run in runs}) == 1
    for repeat in (runs[:3], runs[3:]):
        validated = np.sort(np.concatenate([run.validation for run in repeat]))
        assert validated.tolist() == np.setdiff1d(np.arange(ROWS), runs[0].test).tolist()
    assert not {tuple(run.validation) for run in runs[:3]} & {
        tuple(run.validation) for run in runs[3:]
    }
    once = rows_of(beside, folds=3, fold=1, **by)
    assert once.validation.tolist() == runs[1].validation.tolist()


def test_a_column_names_the_parts() -> None:
    beside = [["train", "Val", "test", "training"][n % 4] for n in range(8)]
    found = rows_of(beside, by="part")
    assert [found.train.tolist(), found.validation.tolist(), found.test.tolist()] == [
        [0, 3, 4, 7], [1, 5], [2, 6],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("beside", "by", "said"),
    [
        (["train", "dev"], "part", "holds 'dev'; it may hold train, validation and test"),
        (["train", "test"], "part", "names no row validation"),
        (["31.01.2024"] * 9, "order", "holds '31.01.2024'; it needs numbers, or dates with"),
        (["2024-01-31", "2024-01-31T00:00+01:00"], "order", "a time zone in some rows only"),
        (["1"] * 50, "order", "rows of one value stay together"),
        (["a"] * 50, "group", "has 1 groups, too few"),
    ],
)
def test_what_a_column_cannot_say_is_refused(beside: list[str], by: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        rows_of(beside, by=by)


# From files -------------------------------------------------------------------------------


def table(folder: Path, name: str = "t.csv", shift: float = 0.0) -> None:
    lines = [
        f"{n + shift},{day},{owner},{'ab'[n % 2]}"
        for n, (day, owner) in enumerate(zip(DAY, OWNER, strict=True))
    ]
    (folder / name).write_text("\n".join(["x,day,owner,kind", *lines]))


def described(split: dict[str, Any], **options: Any) -> dict[str, Any]:
    given = {"stratify": False, **split}
    return dataset("csv", given, **{"path": "t.csv", "target": "kind", "columns": ["x"], **options})


def numbers(part: Any) -> list[float]:
    return sorted(part.inputs[:, 0].tolist())


def test_a_table_is_divided_by_its_column_which_is_no_input(tmp_path: Path) -> None:
    table(tmp_path)
    data = load(
        described({"by": "order", "column": "day"}, columns=["x"], standardize=False), tmp_path
    )
    late = sorted(range(ROWS), key=lambda n: DAY[n])[-24:]
    assert numbers(data.test) == sorted(map(float, late))
    given = described({"by": "group", "column": "owner"}, columns=None, categorical=["day"])
    data = load(given, tmp_path)
    assert data.preprocessing["columns"] == ["x", "day"]


def test_a_gap_in_the_splits_column_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,day,kind\n1,2024-01-01,a\n2,NA,b\n")
    with pytest.raises(DataError, match=r"line 3, column 'day' holds 'NA'.*the split goes by it"):
        load(described({"by": "order", "column": "day"}), tmp_path)


def test_dates_of_parquet_and_arrays_beside_inputs(tmp_path: Path) -> None:
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    kind = [n % 2 for n in range(ROWS)]
    frame = pandas.DataFrame({"x": range(ROWS), "day": pandas.to_datetime(DAY), "kind": kind})
    frame.to_parquet(tmp_path / "t.parquet")
    moments = np.array(DAY, "datetime64[s]")
    np.savez(tmp_path / "t.npz", inputs=np.arange(ROWS * 1.0)[:, None], targets=kind, day=moments)
    split = {"by": "order", "column": "day"}
    table(tmp_path)
    expected = numbers(load(described(split, standardize=False), tmp_path).test)
    one = described(split, standardize=False)
    for name, left_out in (("parquet", ()), ("npz", ("target", "columns"))):
        other = copy.deepcopy(one) | {"name": name}
        other["options"] = {k: v for k, v in one["options"].items() if k not in left_out}
        other["options"]["path"] = f"t.{name}"
        assert numbers(load(other, tmp_path).test) == expected
    with pytest.raises(DataError, match="no array 'week' beside inputs and targets"):
        load(other | {"split": other["split"] | {"column": "week"}}, tmp_path)


def test_a_test_file_is_the_test_part(tmp_path: Path) -> None:
    table(tmp_path)
    table(tmp_path, "later.csv", shift=1000.0)
    data = load(described({"test": 0.0}, test_path="later.csv", standardize=False), tmp_path)
    assert data.test is not None
    assert numbers(data.test) == [n + 1000.0 for n in range(ROWS)]
    assert sorted(numbers(data.train) + numbers(data.validation)) == [float(n) for n in range(ROWS)]
    (tmp_path / "later.csv").write_text("x,kind\n1,a\n")
    with pytest.raises(DataError, match=r"later\.csv: it has 2 columns, but the first file has"):
        load(described({"test": 0.0}, test_path="later.csv"), tmp_path)


def test_a_trial_of_repeated_folds_is_the_mean_of_all(tmp_path: Path) -> None:
    one = spec(dataset=dataset("iris", {"folds": 3, "repeats": 2}), epochs=2)
    engine = Engine("cpu", settings=EngineSettings(threads=1))
    end = only(run_all(engine, [start(1, one, folder=tmp_path)]), 1, "finished")
    by_fold = end.record["folds"]["val_accuracy"]
    assert len(by_fold) == 6
    assert end.values == [pytest.approx(np.mean(by_fold))]


@pytest.mark.parametrize("by", [{}, {"by": "order"}, {"by": "group"}, {"by": "part"}])
def test_no_validation_part_and_no_test_part_leave_all_rows(by: dict[str, str]) -> None:
    found = rows_of(["train", "test", "validation"] * 5, validation=0, test=0, **by)
    assert found.train.tolist() == list(range(15))
    assert len(found.validation) == len(found.test) == 0


@pytest.mark.parametrize("by", [{}, {"by": "order"}, {"by": "group"}])
def test_no_validation_part_beside_a_test_part(by: dict[str, str]) -> None:
    beside = DAY if by.get("by") == "order" else OWNER
    found = rows_of(beside if by else None, validation=0, **by)
    assert len(found.validation) == 0
    assert np.union1d(found.train, found.test).tolist() == list(range(ROWS))
    assert len(found.test) == pytest.approx(24, abs=5)


def test_another_column_to_split_by_is_other_data(tmp_path: Path) -> None:
    table(tmp_path)
    hashes = set()
    for column in ("day", "owner"):
        hashes.add(load(described({"by": "group", "column": column}), tmp_path).data_hash)
    hashes.add(
        load(
            described(
                {"by": "group", "column": "owner"}, columns=None, categorical=["day"], weight="x"
            ),
            tmp_path,
        ).data_hash
    )
    assert len(hashes) == 3
