"""Everything that a worker brings: modules, and the samplers and pruners of installed packages."""

from pathlib import Path

from tuner_service.search import installed
from workers.user_modules import FolderContents, ModuleFolder, open_folder


def offers_of(directory: Path | None, programs: Path | None = None) -> ModuleFolder:
    """Return what a worker with this directory of modules brings.

    Args:
        programs: Of what `tuner run` has registered.

    Raises:
        SettingsError: There is no such directory.
    """
    found = installed.found()
    sound = {one.name: one.description for one in found.sound.values()}
    return open_folder(
        directory, FolderContents(sound, found.refused), () if programs is None else (programs,)
    )
