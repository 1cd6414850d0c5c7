"""The compiled library of kernels.cpp: its structures, and how it is built.

Compiled once per machine by the C++ compiler that inductor would need too, in five seconds, and
kept under a name that says what it was compiled from and for.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from tuner_service.files import private_folder

SOURCE = Path(__file__).with_name("kernels.cpp")
INCLUDED = (Path(__file__).with_name("recurrent.h"),)
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("g++", "clang++", "c++")
COMPILE_SECONDS = 120.0
MOST_LAYERS = 64  # kMostLayers of kernels.cpp

_i64, _f64, _pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class NativeError(RuntimeError):
    """The library cannot be built here; the message says why."""


# The structures mirror kernels.cpp field by field, by hand: a field that is moved here alone is
# read as another's number. One that is missing on one side is found at load (`_require_same`).
class LayerStruct(ctypes.Structure):
    """`Layer` of kernels.cpp."""

    _fields_ = [
        (name, _i64)
        for name in (
            "channels", "pitch", "outputs", "stride", "kernel", "height", "width",
            "norm", "pooled", "dropped", "weight", "bias", "scale", "stats",
        )
    ]  # fmt: skip


class CellsStruct(ctypes.Structure):
    """`Cells` of recurrent.h."""

    _fields_ = [
        (name, _i64)
        for name in (
            "kind", "features", "pitch", "units", "stride", "gates", "steps", "backward",
            "directions", "dropped", "weight_ih", "weight_hh", "bias_ih", "bias_hh",
        )
    ]  # fmt: skip


class OptimizerStruct(ctypes.Structure):
    """`Optimizer` of kernels.cpp."""

    _fields_ = [("kind", _i64)] + [
        (name, _f64) for name in ("l2", "momentum", "beta2", "eps", "beta1")
    ]


class TrialStruct(ctypes.Structure):
    """`Trial` of kernels.cpp."""

    _fields_ = [
        ("layers", _pointer),
        *[(name, _i64) for name in ("count", "activation", "size")],
        ("cells", _pointer),
        ("cell_count", _i64),
        ("optimizer", OptimizerStruct),
        *[(name, _pointer) for name in ("weights", "average", "square", "statistics")],
        *[(name, _f64) for name in ("dropout", "smoothing", "l1", "clip")],
        *[(name, _i64) for name in ("seed", "steps")],
    ]


class SliceStruct(ctypes.Structure):
    """`Slice` of kernels.cpp."""

    _fields_ = [
        *[(name, _pointer) for name in ("rows", "targets", "order", "coefficients")],
        *[(name, _i64) for name in ("rows_in_slice", "batch", "loss")],
    ]


STRUCTURES: Mapping[str, type[ctypes.Structure]] = {
    "layer": LayerStruct,
    "cells": CellsStruct,
    "optimizer": OptimizerStruct,
    "trial": TrialStruct,
    "slice": SliceStruct,
}


class Library:
    """The compiled functions for one number type. Their calls release the interpreter lock."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        # CDLL, not PyDLL: calls let go of the interpreter, so that the trainer's threads are heard.
        library = ctypes.CDLL(str(path))
        _require_same(library)
        kind = "double" if dtype == torch.float64 else "float"
        trial = ctypes.POINTER(TrialStruct)
        self.train = getattr(library, f"tuner_train_{kind}")
        self.train.restype = _f64
        self.train.argtypes = [trial, ctypes.POINTER(SliceStruct), _pointer]
        self.evaluate = getattr(library, f"tuner_evaluate_{kind}")
        self.evaluate.restype = None
        self.evaluate.argtypes = [trial, _pointer, _i64, _pointer, _pointer]
        self.buffer_bytes = getattr(library, f"tuner_buffer_{kind}")
        self.buffer_bytes.restype = _i64
        self.buffer_bytes.argtypes = [trial, _i64]
        self.stride = getattr(library, f"tuner_stride_{kind}")
        self.stride.restype = _i64
        self.stride.argtypes = [_i64]


def _require_same(library: ctypes.CDLL) -> None:
    """Refuse a library whose structures are not those of this module: it would read past them.

    Raises:
        NativeError: One has another size, or networks may have another number of layers.
    """
    ours = {f"size_{name}": ctypes.sizeof(each) for name, each in STRUCTURES.items()}
    for name, wanted in {**ours, "most_layers": MOST_LAYERS}.items():
        function = getattr(library, f"tuner_{name}")
        function.restype = _i64
        if function() != wanted:
            raise NativeError(
                f"{SOURCE.name} and {Path(__file__).name} must agree on {name}, but got "
                f"{function()} and {wanted}"
            )


def build(directory: Path) -> Path:
    """Return the compiled library in `directory`, made unless it is there for this very machine.

    Raises:
        NativeError: If there is no C++ compiler, or it fails.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeError("no C++ compiler (g++)")
    path = directory / f"native-{_fingerprint(compiler)}.so"
    if not path.exists():
        private_folder(directory)
        _compile(compiler, path)
    return path


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch, "native.so")
        command = [compiler, *FLAGS, "-shared", "-fPIC", "-o", str(made), str(SOURCE)]
        try:
            done = subprocess.run(  # noqa: S603  a compiler from PATH, and no shell
                command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NativeError(f"{compiler} did not compile {SOURCE.name}: {error}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NativeError(f"{compiler} did not compile {SOURCE.name}: {last}")
        made.replace(path)  # two trainers may do this at once: either's result is whole


def _fingerprint(compiler: str) -> str:
    """Hash what the library depends on: source, flags, compiler, processor."""
    version = subprocess.run(  # noqa: S603  as above
        [compiler, "--version"], capture_output=True, text=True, check=False
    )
    parts = [
        *(each.read_text() for each in (SOURCE, *INCLUDED)),
        *FLAGS,
        version.stdout,
        platform.machine(),
        processor(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def processor() -> str:
    """Return what the processor can do, which `-march=native` builds for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where compiled code is kept: beside inductor's, else the user's cache directory."""
    inductor = environment.get("TORCHINDUCTOR_CACHE_DIR")
    if inductor:
        return Path(inductor, "native")
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "tuner-service", "native")
