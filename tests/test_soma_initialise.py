from pathlib import Path

import numpy as np
import pytest
import torch

from soma import initialise
from soma.initialise import component_indices, kaiming_factors, singular_triplets, svd_factors


def random_weight(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """With singular values from 1 to 0.05, apart enough that each direction is well defined."""
    generator = torch.Generator().manual_seed(rows)
    noise = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    u, s, vh = torch.linalg.svd(noise, full_matrices=False)
    return ((u * torch.linspace(1, 0.05, len(s), dtype=torch.float64)) @ vh).to(dtype)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("alpha", [8, 20])
@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128)])
@pytest.mark.parametrize("components", ["principal", "minor", "middle", 5])
def test_factors_are_those_components(components, shape, alpha) -> None:
    rank, weight = 8, random_weight(*shape)
    k = min(shape)
    start = {"principal": 0, "minor": k - rank, "middle": (k - rank) // 2, 5: 5}[components]
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    chosen = slice(start, start + rank)
    expected = (u[:, chosen] * s[chosen]) @ vh[chosen]

    a, b = svd_factors(weight, rank, components, alpha / rank)
    assert a.shape == (rank, shape[1])
    assert b.shape == (shape[0], rank)
    update = alpha / rank * (b.double() @ a.double()).numpy()
    error = np.linalg.norm(update - expected) / np.linalg.norm(weight.numpy())
    print(f"{components} of {shape}, alpha {alpha}: ||s B A - sum|| / ||W|| = {error:.1e}")
    assert error <= 1e-5
    # The columns of B and the rows of A span exactly the chosen singular directions.
    left = np.linalg.norm(u[:, chosen].T @ np.linalg.qr(b.double().numpy())[0]) ** 2 / rank
    right = np.linalg.norm(vh[chosen] @ np.linalg.qr(a.double().numpy().T)[0]) ** 2 / rank
    assert left == pytest.approx(1, abs=1e-4)
    assert right == pytest.approx(1, abs=1e-4)
    # The root of the singular values is shared out evenly.
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-3, atol=1e-4)


def test_float64_weights_are_decomposed_in_float64() -> None:
    weight = random_weight(40, 40, torch.float64)
    u, s, vh = singular_triplets(weight, range(40))
    assert u.dtype == torch.float64
    assert ((u * s) @ vh - weight).abs().max() < 1e-13


def test_random_components_come_from_the_seed() -> None:
    torch.manual_seed(3)
    first = component_indices("random", 100, 8)
    assert component_indices("random", 100, 8) != first
    torch.manual_seed(3)
    assert component_indices("random", 100, 8) == first
    assert len(set(first)) == 8
    assert max(first) < 100


@pytest.mark.parametrize(
    ("components", "rank", "message"),
    [
        ("minor", 9, "8 singular components"),
        ("random", 9, "8 singular components"),
        (5, 4, "8 singular components"),
        (-1, 4, "8 singular components"),
        ("smallest", 4, "expected an index or"),
    ],
)
def test_components_that_do_not_exist(components, rank, message) -> None:
    with pytest.raises(ValueError, match=message):
        svd_factors(random_weight(8, 16), rank, components, 1.0)


def test_signs_do_not_depend_on_the_library() -> None:
    u, _, _ = singular_triplets(random_weight(32, 16), range(16))
    assert (u.gather(0, u.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_kaiming_start() -> None:
    torch.manual_seed(0)
    a, b = kaiming_factors(torch.empty(7, 400), 16)
    assert not b.any()
    assert a.abs().max() <= 400**-0.5
    assert a.std().item() == pytest.approx(400**-0.5 / 3**0.5, rel=0.05)
    torch.manual_seed(0)
    assert torch.equal(kaiming_factors(torch.empty(7, 400), 16)[0], a)


@pytest.mark.usefixtures("one_thread")
def test_second_call_reads_the_same_bits(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(48, 32)
    computed = svd_factors(weight, 4, "minor", 0.5)
    (entry,) = cache.iterdir()  # and no temporary file is left
    assert entry.suffix == ".pt"

    def never(*_: object) -> None:
        raise AssertionError("decomposed although the entry is there")

    with monkeypatch.context() as patch:
        patch.setattr(initialise, "_decompose", never)
        read = svd_factors(weight, 4, "minor", 0.5)
        other_scale = svd_factors(weight, 4, "minor", 2.0)  # the entry knows no scale
    assert all(torch.equal(x, y) for x, y in zip(computed, read, strict=True))
    assert not torch.equal(other_scale[0], read[0])
    monkeypatch.setenv("SOMA_CACHE", "")
    uncached = svd_factors(weight, 4, "minor", 0.5)
    assert all(torch.equal(x, y) for x, y in zip(computed, uncached, strict=True))


def test_entries_differ_by_weight_rank_and_components(cache: Path) -> None:
    weight = random_weight(16, 16)
    nudged = weight.clone()
    nudged[3, 3] = torch.nextafter(nudged[3, 3], torch.tensor(9.0))
    for given, rank, components in [
        (weight, 4, "minor"),
        (weight, 4, "principal"),
        (weight, 3, "minor"),
        (weight.double(), 4, "minor"),
        (weight.reshape(32, 8), 4, "minor"),
        (nudged, 4, "minor"),
    ]:
        svd_factors(given, rank, components, 1.0)
    assert len(list(cache.iterdir())) == 6


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "other", "text"])
def test_a_damaged_entry_is_computed_anew(cache: Path, damage: str) -> None:
    weight = random_weight(48, 32)
    computed = svd_factors(weight, 4, "minor", 1.0)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    values = singular_triplets(weight, range(28, 32))[0].numpy().tobytes()
    flipped[whole.index(values) + 6] ^= 1
    if damage == "other":
        torch.save({"u": 1}, entry)
    else:
        bad = {"cut": whole[:200], "empty": b"", "bit": bytes(flipped), "text": b"hello there"}
        entry.write_bytes(bad[damage])
    again = svd_factors(weight, 4, "minor", 1.0)
    assert all(torch.equal(x, y) for x, y in zip(computed, again, strict=True))
    assert initialise._read(entry, ((48, 4), (4,), (4, 32)), torch.float32) is not None


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SOMA_CACHE", str(tmp_path / "file" / "cache"))
    a, b = svd_factors(random_weight(8, 8), 2, "minor", 1.0)
    assert a.isfinite().all()
    assert b.isfinite().all()


def test_default_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOMA_CACHE")
    assert initialise.cache_folder() == Path.home() / ".cache" / "soma"
