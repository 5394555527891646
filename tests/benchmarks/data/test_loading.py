"""Decoding of images: as OpenCV, and with it the published code, reads them; or refused by name."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks.data.loading import Kept, decoded
from benchmarks.errors import UserError


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_turned_by_exif_is_read_upright(orientation: int, tmp_path: Path) -> None:
    scene = np.zeros((48, 64, 3), np.uint8)
    scene[:24] = 255
    scene[:, :16, 0] = 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.jpg"
    Image.fromarray(scene).save(file, quality=95, exif=exif)
    expected = cv2.imread(str(file))[..., ::-1]
    read = np.asarray(decoded(file, convert="RGB"))
    assert read.shape == expected.shape == ((64, 48, 3) if orientation > 4 else (48, 64, 3))
    assert np.abs(read.astype(int) - expected).max() <= 8  # two decoders of JPEG
    assert decoded(file).size == (64, 48)  # numbers of the file


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_with_broken_exif_is_read_as_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "broken.jpg"
    Image.new("RGB", (8, 6), (9, 9, 9)).save(file, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
    assert decoded(file, convert="RGB").size == (8, 6)


def test_sixteen_bit_grey_is_not_white(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 40, dtype=np.uint16).reshape(5, 8)
    file = tmp_path / "grey.png"
    Image.fromarray(values).save(file)
    read = np.asarray(decoded(file, convert="RGB"))
    np.testing.assert_array_equal(read, np.repeat((values >> 8)[..., None], 3, axis=2))
    np.testing.assert_array_equal(read, cv2.imread(str(file)))
    np.testing.assert_array_equal(np.asarray(decoded(file)), values)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_32_bits_are_no_picture(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "wide.tiff"
    Image.new(mode, (4, 3)).save(file)
    with pytest.raises(UserError, match=rf"wide\.tiff: cannot be decoded \(mode {mode}: 32-bit"):
        decoded(file, convert="RGB")
    assert decoded(file).mode == mode


def test_kept_files_are_read_again_only_when_they_have_changed(tmp_path: Path) -> None:
    file, reads = tmp_path / "a", []

    def read() -> tuple[np.ndarray, ...]:
        reads.append(file.read_bytes())
        return (np.frombuffer(reads[-1], np.uint8).copy(),)

    kept = Kept()
    for content in (b"one", b"two", b"longer"):
        file.write_bytes(content)
        for _ in range(3):
            (array,) = kept((file,), "rgb", read)
            assert array.tobytes() == content
    assert reads == [b"one", b"two", b"longer"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    kept((file,), "half", read)  # other settings are another result
    assert len(reads) == 4
    file.unlink()
    with pytest.raises(FileNotFoundError):
        kept((file,), "rgb", read)


def test_kept_files_stay_within_their_bounds(tmp_path: Path) -> None:
    reads, kept = [], Kept(limit=100, largest=40)

    def held(name: str, size: int) -> bool:
        """Reads a file of `size` bytes; whether it was in memory."""
        file, before = tmp_path / name, len(reads)
        if not file.exists():
            file.write_bytes(bytes(size))
        kept((file,), None, lambda: (reads.append(name) or np.zeros(size, np.uint8),))
        assert kept.bytes <= 100
        return len(reads) == before

    assert [held("large", 41), held("large", 41)] == [False, False]
    assert [held(name, 30) for name in ("a", "b", "c", "a", "d")] == [False] * 3 + [True, False]
    assert [held(name, 30) for name in ("c", "a", "d", "b")] == [True, True, True, False]
