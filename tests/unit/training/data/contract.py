"""What every source of data keeps: inherited by the tests of each."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from tuner_service.errors import DataError
from workers.training.data.prepare import SOURCES
from workers.training.data.sources import Request, Source


class DatasetSourceContract:
    """Rows and what they mean, the same at every reading.

    A subclass has a fixture `asked`: a request that the source can fulfil.
    """

    @pytest.fixture
    def source(self, asked: Request) -> Source:
        return SOURCES[asked.name]

    def test_rows_have_shapes_that_networks_take_and_a_target_each(
        self, source: Source, asked: Request
    ) -> None:
        raw = source.read(asked)
        for rows in filter(None, (raw.rows, raw.test)):
            assert len(rows.inputs) == len(rows.targets) > 0
            assert rows.inputs.ndim in (2, 3, 4)
            assert rows.inputs.shape[1:] == raw.rows.inputs.shape[1:]
            assert rows.inputs.dtype.kind in "biuf"

    def test_targets_are_classes_with_labels_or_numbers(
        self, source: Source, asked: Request
    ) -> None:
        raw = source.read(asked)
        targets = raw.rows.targets
        if asked.targets == "numbers":
            assert raw.classes is None
            assert targets.ndim == 2
            assert np.isfinite(targets).all()
        else:
            assert raw.classes is not None
            assert len(set(raw.classes)) == len(raw.classes)
            assert targets.dtype == np.int64
            assert set(np.unique(targets)) == set(range(len(raw.classes)))

    def test_reading_again_gives_the_same(self, source: Source, asked: Request) -> None:
        first, again = source.read(asked), source.read(asked)
        for name in ("inputs", "targets"):
            one, other = getattr(first.rows, name), getattr(again.rows, name)
            np.testing.assert_array_equal(one, other, strict=True)
        assert (first.classes, first.columns) == (again.classes, again.columns)

    def test_it_names_the_files_that_it_reads(self, source: Source, asked: Request) -> None:
        for file in source.files(asked):
            assert file.exists()
            assert any(file.is_relative_to(folder.resolve()) for folder in asked.directories)


class FilesContract(DatasetSourceContract):
    """A source of files, the first directory's."""

    def test_a_missing_file_is_refused_by_its_name(self, source: Source, asked: Request) -> None:
        file = source.files(asked)[-1]
        file.rename(file.with_name("elsewhere"))
        with pytest.raises(DataError, match=file.name.removesuffix(".gz")):
            source.read(asked)


class PathContract(FilesContract):
    """A source of the file or directory that `path` names."""

    @pytest.mark.parametrize("way", ["above", "absolute", "link"])
    def test_nothing_outside_the_data_directories_is_read(
        self, source: Source, asked: Request, tmp_path: Path, way: str
    ) -> None:
        folder, name = asked.directories[0], str(asked.options["path"])
        outside = tmp_path / "outside"
        outside.mkdir()
        os.rename(folder / name, outside / name)
        path = {"above": f"../outside/{name}", "absolute": str(outside / name), "link": name}[way]
        if way == "link":
            (folder / name).symlink_to(outside / name)
        astray = dataclasses.replace(asked, options={**asked.options, "path": path})
        for act in (source.files, source.read):
            with pytest.raises(DataError, match="leaves the data directories"):
                act(astray)
