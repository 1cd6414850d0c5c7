"""Where files lie, and who may read them."""

import os
from pathlib import Path

import pytest

from tuner_service.data_directory import DataDirectory, fencing_token_of, slot_of
from tuner_service.files import private_folder

STUDY = "abc"


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path)


def test_attempts_share_checkpoints_and_never_models(directory: DataDirectory) -> None:
    assert directory.checkpoint(STUDY, 4) == directory.root / "checkpoints" / STUDY / "4"
    assert directory.model(STUDY, 4, 1) != directory.model(STUDY, 4, 2)
    assert directory.log(STUDY, 4, 1) != directory.log(STUDY, 4, 2)


def test_a_studys_files_lie_in_its_folders_and_say_whose_they_are(
    directory: DataDirectory,
) -> None:
    model, log = directory.model(STUDY, 4, 17), directory.log(STUDY, 4, 2)
    checkpoint = directory.checkpoint(STUDY, 4).with_name("4.12.safetensors")
    assert tuple(path.parent for path in (model, log, checkpoint)) == directory.study_folders(STUDY)
    assert [slot_of(path) for path in (model, log, checkpoint)] == [4, 4, 4]
    assert fencing_token_of(model) == "17"


@pytest.mark.parametrize("name", ["notes", ".4", "x4.json", "4x-1.safetensors", "9" * 40 + ".json"])
def test_a_file_of_no_slot_is_nobodys(name: str) -> None:
    assert slot_of(Path(name)) is None


def test_only_files_inside_are_named_or_deleted(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("keep me")
    directory = DataDirectory(tmp_path / "data")
    private_folder(directory.all_models)
    assert directory.relative(str(outside)) is None
    assert directory.inside("../outside.txt") is None
    model = directory.model(STUDY, 1, 1)
    assert directory.relative(str(model)) == f"models/{STUDY}/1-1.safetensors"
    assert directory.inside(f"models/{STUDY}/1-1.safetensors") == model.resolve()
    directory.drop("../outside.txt")
    assert outside.exists()


def test_dropping_a_slots_checkpoint_leaves_its_neighbours(directory: DataDirectory) -> None:
    folder = private_folder(directory.checkpoint(STUDY, 1).parent)
    private_folder(folder / "1.loop" / "inside")
    for name in ("1.json", "1.safetensors", "10.json", "11.safetensors"):
        (folder / name).touch()
    directory.drop_checkpoint(STUDY, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["10.json", "11.safetensors"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_folders_are_their_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    directory = DataDirectory(tmp_path / "data")
    before = os.umask(umask)
    try:
        private_folder(directory.model(STUDY, 1, 1).parent)
        private_folder(directory.model(STUDY, 1, 1).parent)
    finally:
        os.umask(before)
    made = [directory.root, *directory.root.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
    assert [path.name for path in made] == ["data", "models", STUDY]


def test_a_data_directory_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    root.chmod(0o755)
    assert DataDirectory(root).prepare() == root
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_file_in_a_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(FileExistsError):
        private_folder(tmp_path / "data")
