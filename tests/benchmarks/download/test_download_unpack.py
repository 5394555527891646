"""Archives that somebody else made: what is refused, and that nothing is written outside."""

import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from benchmarks.download import unpack as module
from benchmarks.download.unpack import unpack
from benchmarks.errors import UserError

LINK = (stat.S_IFLNK | 0o777) << 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def make_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            made.writestr(name, content)
    return path


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for info, content in members:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def vint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def make_rar(path: Path, *members: tuple[str, bytes]) -> Path:
    """A RAR 5.0 archive of stored files, from the format's public technical note."""

    def block(fields: bytes) -> bytes:
        body = vint(len(fields)) + fields
        return struct.pack("<I", zlib.crc32(body)) + body

    out = b"Rar!\x1a\x07\x01\x00" + block(vint(1) + vint(0) + vint(0))
    for name, content in members:
        fields = vint(2) + vint(2) + vint(len(content))  # file header with data area
        fields += vint(4) + vint(len(content)) + vint(0o644)  # CRC32 present, size, attributes
        fields += struct.pack("<I", zlib.crc32(content)) + vint(0) + vint(1)  # stored, Unix
        fields += vint(len(name.encode())) + name.encode()
        out += block(fields) + content
    path.write_bytes(out + block(vint(5) + vint(0) + vint(0)))
    return path


def test_a_zip_and_a_tar_unpack_to_their_files(tmp_path: Path, folder: Path) -> None:
    reported: list[int] = []
    unpack(make_zip(tmp_path / "a.zip", ("x/1.png", b"one")), folder, reported.append)
    unpack(
        make_tar(tmp_path / "a.tgz", (tarfile.TarInfo("x/2.png"), b"2")), folder, reported.append
    )
    assert tree(folder) == {"x/1.png": b"one", "x/2.png": b"2"}
    assert reported == [3, 1]


def test_backslashes_separate_folders(tmp_path: Path, folder: Path) -> None:
    unpack(make_zip(tmp_path / "a.zip", ("RGB\\1.png", b"1")), folder, print)
    assert tree(folder) == {"RGB/1.png": b"1"}


def linked(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = LINK
    return info


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil", "outside the folder"),
        ("a/../../evil", "outside the folder"),
        ("/tmp/evil", "outside the folder"),
        ("..\\evil", "outside the folder"),
        ("C:\\evil", "outside the folder"),
        ("c:evil", "outside the folder"),
        ("evil\n", "unprintable name"),
        (linked("evil"), "is a link"),
    ],
)
def test_hostile_zips_write_nothing(
    tmp_path: Path, folder: Path, name: str | zipfile.ZipInfo, words: str
) -> None:
    archive = make_zip(tmp_path / "a.zip", ("good", b"1"), (name, b"/etc/passwd"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"{words}.*nothing was unpacked"):
        unpack(archive, folder, print)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, folder: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("evil")
    info.type, info.linkname = kind, "/etc/passwd"
    archive = make_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("good"), b"1"), (info, b""))
    with pytest.raises(UserError, match="is a link or a device"):
        unpack(archive, folder, print)
    assert not tree(folder)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil"])
def test_paths_out_of_a_tar_are_refused(tmp_path: Path, folder: Path, name: str) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo(name), b"1"))
    with pytest.raises(UserError, match="outside the folder"):
        unpack(archive, folder, print)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "words"), [(("a", "./a"), "is there twice"), (("a", "a/b"), "lies in a file")]
)
def test_names_that_collide_are_refused(
    tmp_path: Path, folder: Path, names: tuple[str, ...], words: str
) -> None:
    archive = make_zip(tmp_path / "a.zip", *((name, b"1") for name in names))
    with pytest.raises(UserError, match=words):
        unpack(archive, folder, print)
    assert not tree(folder)


def test_an_encrypted_zip_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("a", b"1"))
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    archive.write_bytes(content)
    with pytest.raises(UserError, match="is encrypted"):
        unpack(archive, folder, print)


def test_an_archive_without_room_writes_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_zip(tmp_path / "bomb.zip", ("a", bytes(10_000_000)))
    assert archive.stat().st_size < 20_000
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"has room for 0\.0 GB; nothing was unpacked"):
        unpack(archive, folder, print)
    assert not tree(folder)


def test_a_damaged_zip_is_one_line(tmp_path: Path, folder: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("a", os.urandom(1000)), ("b", b"1"))
    content = bytearray(archive.read_bytes())
    content[200] ^= 255  # within a's bytes
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: damaged .*fetch it again"):
        unpack(archive, folder, print)


def test_a_truncated_tar_is_one_line(tmp_path: Path, folder: Path) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("a"), os.urandom(50_000)))
    archive.write_bytes(archive.read_bytes()[:30_000])
    with pytest.raises(UserError, match=r"a\.tar\.gz: damaged"):
        unpack(archive, folder, print)


def test_a_login_page_in_place_of_an_archive_is_told(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "a.zip").write_text("\n<!doctype html><title>Please log in</title>")
    with pytest.raises(UserError, match="no zip, tar or rar; it is a web page"):
        unpack(tmp_path / "a.zip", folder, print)


def only(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one of the tools for rar archives, the real one."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    monkeypatch.setattr(module, "RAR_TOOLS", {tool: module.RAR_TOOLS[tool]})


@pytest.mark.parametrize("tool", module.RAR_TOOLS)
def test_a_rar_unpacks_with_what_is_installed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    only(tool, monkeypatch)
    archive = make_rar(tmp_path / "a.rar", ("RAND_CITYSCAPES/RGB/1.png", b"one"), ("r.txt", b"r"))
    unpack(archive, folder, print)
    assert tree(folder) == {"RAND_CITYSCAPES/RGB/1.png": b"one", "r.txt": b"r"}


@pytest.mark.parametrize("tool", module.RAR_TOOLS)
def test_a_rar_with_a_path_out_of_the_folder_is_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    only(tool, monkeypatch)
    with pytest.raises(UserError, match="outside the folder"):
        unpack(make_rar(tmp_path / "a.rar", ("a", b"1"), ("../evil", b"1")), folder, print)
    assert not tree(folder)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("tool", module.RAR_TOOLS)
def test_a_damaged_rar_is_one_line(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    only(tool, monkeypatch)
    archive = make_rar(tmp_path / "a.rar", ("a", os.urandom(50_000)))
    archive.write_bytes(archive.read_bytes()[:30_000])
    with pytest.raises(UserError, match=f"{tool} ends with code"):
        unpack(archive, folder, print)


def test_links_that_a_rar_tool_left_are_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RAR_TOOLS", {"sh": (["true"], ["sh", "-c", "ln -s / evil"])})
    with pytest.raises(UserError, match="'evil' is a link"):
        unpack(make_rar(tmp_path / "a.rar", ("a", b"1")), folder, print)


def test_without_a_tool_a_rar_is_one_clear_word(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="install one of unrar, unar, bsdtar"):
        unpack(make_rar(tmp_path / "a.rar", ("a", b"1")), folder, print)
