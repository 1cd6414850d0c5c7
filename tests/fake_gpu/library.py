"""Compiles device.cpp, once per version of torch and of the source. Does not import torch."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
COMPILERS = ("g++", "clang++", "c++")


def cache() -> Path:
    """Where the library is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tuner-service"


def missing() -> str | None:
    """Return what the machine lacks to compile it; None if it can be tried."""
    if not any(shutil.which(name) for name in COMPILERS):
        return f"no C++ compiler ({', '.join(COMPILERS)})"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return None if header.exists() else f"no {header}: install Python's development package"


def build() -> Path:
    """Return the compiled library, from the cache where it is there."""
    version = importlib.metadata.version("torch")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    out = cache() / f"fake_gpu-{version}-{digest}.so"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            made = Path(folder, out.name)
            subprocess.run(_command(made), check=True)
            made.replace(out)  # whole or not at all, whoever else compiles it
    return out


def _command(out: Path) -> list[str]:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    torch = Path(spec.submodule_search_locations[0])
    includes = [
        torch / "include",
        torch / "include/torch/csrc/api/include",
        Path(sysconfig.get_paths()["include"]),
    ]
    compiler = next(name for name in COMPILERS if shutil.which(name))
    flags = ["-O1", "-shared", "-fPIC", "-std=c++20", "-w", "-DTORCH_EXTENSION_NAME=fake_gpu"]
    libraries = ["-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    return [
        compiler, *flags, *(f"-I{path}" for path in includes), str(SOURCE), "-o", str(out),
        f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", *libraries,
    ]  # fmt: skip
