"""What an uploaded file is, and what is refused of archives that mean harm."""

import builtins
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.unit.datasets.files import flowers, npz, picture, zipped
from tuner_service.datasets import images, text_tables
from tuner_service.datasets import inspect as inspect_module
from tuner_service.datasets.inspect import Contents, inspect
from tuner_service.errors import DataError

LIMIT = 1 << 20


def test_arrays_are_told_by_their_dimensions(tmp_path: Path) -> None:
    for shape, kind in (((9, 3), "table"), ((9, 5, 3), "sequence"), ((9, 1, 4, 4), "image")):
        file = npz(tmp_path / "a.npz", inputs=np.zeros(shape), targets=np.arange(9))
        assert inspect(file, max_bytes=LIMIT) == Contents(
            "npz",
            rows=9,
            shape=shape[1:],
            inputs=kind,  # type: ignore[arg-type]
        )


def test_a_zip_of_image_folders(tmp_path: Path) -> None:
    file = zipped(tmp_path / "f.zip", {**flowers(), "__MACOSX/x": b"", "flowers/.DS_Store": b""})
    assert inspect(file, max_bytes=LIMIT) == Contents(
        "images", rows=12, shape=(4, 6), inputs="image"
    )
    file = zipped(
        tmp_path / "g.zip", {"a/1.png": picture((3, 3), 1), "b/1.png": picture((2, 2), 1)}
    )
    assert inspect(file, max_bytes=LIMIT).shape is None


def test_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.parquet"
    pd.DataFrame({"x": [1.0, 2.0], "kind": ["a", "b"]}).to_parquet(file, index=False)
    found = inspect(file, max_bytes=LIMIT)
    assert (found.format, found.rows, found.columns) == ("parquet", 2, ("x", "kind"))
    with pytest.raises(DataError, match="more than the 10"):
        inspect(file, max_bytes=10)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'tuner-service\[parquet\]'"):
        inspect(file, max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.zeros((3, 2))}, "no array 'targets', only 'inputs'"),
        ({"inputs": np.zeros((3, 2)), "targets": np.zeros(4)}, "with 3 rows"),
        ({"inputs": np.zeros(3), "targets": np.zeros(3)}, r"is \[3\]"),
        ({"inputs": np.zeros((3, 0)), "targets": np.zeros(3)}, "none of them 0"),
        ({"inputs": np.array([["a"]]), "targets": np.zeros(1)}, "must hold numbers"),
        ({"inputs": np.zeros((1, 2)), "targets": np.zeros(1, complex)}, "numbers or text"),
        ({"inputs": np.zeros((1, 2)), "targets": np.array([{}])}, "Python objects"),
        ({"inputs": np.zeros((2, 1 << 20), np.uint8), "targets": np.zeros(2)}, "unpacked"),
    ],
)
def test_arrays_that_are_no_data_are_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        inspect(npz(tmp_path / "a.npz", **arrays), max_bytes=LIMIT)


def test_an_array_whose_header_lies_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999, 99999), }\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    file = zipped(tmp_path / "a.npz", {"inputs.npy": body, "targets.npy": body})
    with pytest.raises(DataError, match="unpacked"):
        inspect(file, max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../a/1.png": b""}, "leads out"),
        ({"/a/1.png": b""}, "leads out"),
        ({"a\\..\\1.png": b""}, "leads out"),
        ({"c:/a/1.png": b""}, "leads out"),
        ({"1.png": b""}, "lies in no folder"),
        ({"a/readme.txt": b""}, "only PNG and JPEG"),
        ({"a/": b""}, "no image in the zip"),
        ({"a/1.png": b"GIF89a"}, "neither PNG nor JPEG"),
        ({"a/1.png": picture((3, 3), 1, form="BMP")}, "neither PNG nor JPEG"),
        ({"a/1.png": b"\0" * (LIMIT + 1)}, "unpacks to more"),
        ({f"a/{i}.png": b"\0" * (LIMIT // 4) for i in range(5)}, "unpacks to more"),
    ],
)
def test_zips_that_lead_elsewhere_or_explode_are_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        inspect(zipped(tmp_path / "f.zip", files), max_bytes=LIMIT)


@pytest.mark.parametrize("kind", ["npz", "images"])
def test_what_is_encrypted_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.zip"
    if kind == "npz":
        npz(file.with_suffix(".npz"), inputs=np.zeros((9, 2)), targets=np.arange(9))
        file = file.with_suffix(".npz")
    else:
        zipped(file, flowers())
    content = bytearray(file.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # an entry, and the directory's of it
        found = -1
        while (found := content.find(mark, found + 1)) >= 0:
            content[found + at] |= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is encrypted; (zip|save) it without a password"):
        inspect(file, max_bytes=LIMIT)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/1.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        inspect(tmp_path / "f.zip", max_bytes=LIMIT)


def test_an_image_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="20×10 pixels"):
        inspect(zipped(tmp_path / "f.zip", flowers(size=(20, 10))), max_bytes=LIMIT)


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1," + "2" * 2000,  # one line
        "," * 2000 + "\n1\n",
        'a\n"' + '\n","' * 500 + '"\n',  # one row of many lines
    ],
)
def test_a_table_that_is_one_endless_row_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(text_tables, "MAX_ROW", 1000)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match="a row is longer than the 1,000 characters"):
        inspect(tmp_path / "t.csv", max_bytes=LIMIT)
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 500)
    assert inspect(tmp_path / "t.csv", max_bytes=LIMIT).rows == 500


def test_a_zip_of_too_many_files_is_refused_before_its_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_module, "MAX_DIRECTORY", 5000)
    file = zipped(tmp_path / "f.zip", {f"a/{i}.png": b"" for i in range(100)})
    with pytest.raises(DataError, match="put fewer files into it"):
        inspect(file, max_bytes=LIMIT)
    content = bytearray(file.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    (size,) = struct.unpack_from("<L", content, end + 12)
    (begin,) = struct.unpack_from("<L", content, end + 16)
    forged = content.copy()
    forged[end + 8 : end + 12] = b"PK\x05\x06"  # the counts of files, which nobody reads
    file.write_bytes(forged)
    assert len(zipfile.ZipFile(file).namelist()) == 100
    with pytest.raises(DataError, match="put fewer files into it"):
        inspect(file, max_bytes=LIMIT)
    struct.pack_into("<LL", content, end + 12, 0xFFFFFFFF, 0xFFFFFFFF)
    zip64 = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 100, 100, size, begin)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    file.write_bytes(content[:end] + zip64 + locator + content[end:])
    assert len(zipfile.ZipFile(file).namelist()) == 100
    with pytest.raises(DataError, match="put fewer files into it"):
        inspect(file, max_bytes=LIMIT)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"PAR1"])
def test_broken_files_are_refused(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "f").write_bytes(start + b"\x07" * 100)
    with pytest.raises(DataError, match=r"cannot be read|broken"):
        inspect(tmp_path / "f", max_bytes=LIMIT)


def told(folder: Path, text: str) -> Contents:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return inspect(folder / "t.csv", max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("y,x,y\n1,2,1\n", "names the column 'y' twice (1 and 3); rename one"),
        ("a ,a\n1,2\n", "names the column 'a' twice (1 and 2)"),
        ("a,b\nr1,1,2\n", "line 2 has 3 cells"),
        ("a,b\n1,2\n\n1\n", "line 4 has 1 cell"),
        ('a,b\n1,2\n1,"2\n', "a quote that is never closed"),
        ("a,b\n", "no rows of data"),
    ],
)
def test_tables_that_are_not_as_wide_as_their_header_are_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(DataError) as error:
        told(tmp_path, text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        ("a,kind", lambda i: f"{i},x{i % 2}", None),
        ("5.1,3.5,setosa", lambda i: f"{i},{i / 7},x{i % 2}", "looks like data"),
        ("1,1,0", lambda i: f"{i},{i / 7},{i % 2}", "`header: false`"),
        ("name,2019,2020", lambda i: f"n{i % 3},{i},{i + 1}", "looks like data"),
        ("id,2019,2020", lambda i: f"{i},{i},{i + 1}", None),
        (",a,kind", lambda i: f"{i},{i},x{i % 2}", "column 1 has no name"),
        ("a;kind", lambda i: f"{i},14;x{i % 2}", "decimal comma"),
        ("a,kind", lambda i: f"2024-01-{i + 1:02},x{i % 2}", "dates"),
        ("a,kind", lambda i: f"name {i},x{i % 2}", "30 different texts"),
        ("a,kind", lambda i: f"{'NA' if i < 3 else i},x{i % 2}", "'NA' in 3 rows"),
        ("a,kind", lambda i: f"{'oops' if i == 3 else i},x{i % 2}", "'oops' in line 5"),
    ],
)
def test_what_is_likely_a_mistake_is_told_at_the_upload(
    tmp_path: Path, head: str, row: Any, words: str | None
) -> None:
    found = told(tmp_path, "\n".join([head, *(row(i) for i in range(30))]))
    assert found.rows == 30
    assert any(words in warning for warning in found.warnings) if words else not found.warnings


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    rows = [["a", "b, c", "kind"], *(["1,5", "x; y", "u|v"] for _ in range(5))]
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    assert told(tmp_path, text).delimiter == delimiter
    assert told(tmp_path, text).columns == ("a", "b, c", "kind")


def test_a_small_file_that_is_large_is_refused(tmp_path: Path) -> None:
    runs = pa.table({"x": pa.array(np.zeros(300_000)), "y": pa.array(np.zeros(300_000, np.int8))})
    parquet.write_table(runs, tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match="unpacks to 2,400,000 bytes"):
        inspect(tmp_path / "t.parquet", max_bytes=2_000_000)


def test_parquets_index_and_types_are_told(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1, 2], "n": [[1.0], [2.0]]}, index=["p", "q"])
    frame.to_parquet(tmp_path / "t.parquet")
    found = inspect(tmp_path / "t.parquet", max_bytes=LIMIT)
    assert found.columns == ("x", "n")
    assert "'n' is of the type list<" in found.warnings[0]


def test_an_array_of_a_shape_that_it_has_not_is_refused(tmp_path: Path) -> None:
    for shape, body in (("(-3, -2)", b"\0" * 48), ("(3, 2)", b"\0" * 40), ("(3, 2)", b"\0" * 56)):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body
        file = zipped(tmp_path / "a.npz", {"inputs.npy": array, "targets.npy": array})
        with pytest.raises(DataError, match=r"of the shape .* by its header"):
            inspect(file, max_bytes=LIMIT)


def test_an_archive_whose_content_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, inputs=np.zeros((9, 2)), targets=np.arange(9))
    content = bytearray(file.read_bytes())
    content[200] ^= 1  # of the first array's numbers
    file.write_bytes(content)
    with pytest.raises(DataError, match="Bad CRC-32"):
        inspect(file, max_bytes=LIMIT)


def test_small_arrays_that_become_large_are_refused(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", inputs=np.zeros((9, 1 << 16), np.int8), targets=np.arange(9))
    with pytest.raises(DataError, match=r"takes 2,359,296 bytes unpacked"):
        inspect(file, max_bytes=LIMIT)


STRAYS = {
    "__MACOSX/x": b"", "flowers/.DS_Store": b"", "flowers/Thumbs.db": b"", "desktop.ini": b"",
    "flowers/rose/.ipynb_checkpoints/1-checkpoint.png": b"no image",
}  # fmt: skip


def test_what_systems_leave_beside_images_is_left_out(tmp_path: Path) -> None:
    found = inspect(zipped(tmp_path / "f.zip", {**flowers(), **STRAYS}), max_bytes=LIMIT)
    assert (found.rows, found.warnings) == (12, ())
    more = {"README.md": b"hello", "flowers/notes.txt": b"x"}
    found = inspect(zipped(tmp_path / "f.zip", {**flowers(), **more}), max_bytes=LIMIT)
    assert found.rows == 12
    assert found.warnings == ("left out, as they are no images: 'README.md', 'flowers/notes.txt'",)


def test_sizes_are_those_that_people_see(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {}
    for form in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 6)).save(buffer, form, exif=turned)
        pictures[f"a/1.{form.lower()}"] = buffer.getvalue()
    assert inspect(zipped(tmp_path / "f.zip", pictures), max_bytes=LIMIT).shape == (4, 6)


def cut(form: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()[: -len(buffer.getvalue()) // 3]


def of_16_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.png": cut("PNG")}, "'a/1.png' cannot be read"),
        ({"a/1.jpg": cut("JPEG")}, "'a/1.jpg' cannot be read"),
        ({"a/1.png": of_16_bits()}, "'a/1.png' has 16 bits"),
        ({"a/1.gif": b"GIF89a"}, "'a/1.gif' is an image of another kind"),
        ({"flowers\\rose\\1.png": picture((3, 3), 1)}, "has `\\` between folders"),
    ],
)
def test_images_are_judged_when_they_arrive(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(DataError) as error:
        inspect(zipped(tmp_path / "f.zip", files), max_bytes=LIMIT)
    assert message in str(error.value)
