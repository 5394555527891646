from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from soma import initialise
from soma.initialise import (
    component_indices,
    kaiming_factors,
    orthonormal_factors,
    pivoted_qr_factors,
    singular_triplets,
    svd_factors,
)


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


@pytest.mark.parametrize("components", ["principal", "minor"])
@pytest.mark.parametrize("shape", [(40, 20), (20, 40)])
def test_orthonormal_factors_keep_the_values_in_a(components: str, shape: tuple) -> None:
    weight = random_weight(*shape)
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    chosen = slice(0, 6) if components == "principal" else slice(14, 20)
    a, b = orthonormal_factors(weight, 6, components)
    assert torch.allclose(b.T @ b, torch.eye(6), atol=1e-5)
    assert np.abs(a.norm(dim=1).numpy() - s[chosen]).max() < 1e-5
    assert np.abs((b @ a).numpy() - (u[:, chosen] * s[chosen]) @ vh[chosen]).max() < 1e-5


@pytest.mark.parametrize("shape", [(40, 40), (60, 24), (24, 60)])
def test_pivoted_qr_is_that_of_lapack(cache: Path, shape: tuple) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    k = min(shape)
    q, _, pivots = scipy.linalg.qr(weight.double().numpy(), pivoting=True, mode="economic")
    steps = [*range(k - 5, k), 0, 1]
    a, b = pivoted_qr_factors(weight, steps)
    assert a.sum(dim=1).tolist() == [1] * 7
    assert a.argmax(dim=1).tolist() == pivots[steps].tolist()
    expected = torch.as_tensor(q[:, steps], dtype=torch.float32)
    error = (b.abs() - expected.abs()).abs().max().item()
    print(f"Q of {shape} differs by {error:.1e} from LAPACK's")
    assert error < 1e-6
    assert torch.allclose((b * expected).sum(dim=0).abs(), torch.ones(7), atol=1e-5)
    assert (b.gather(0, b.abs().argmax(dim=0, keepdim=True)) > 0).all()
    assert [file.name[:3] for file in cache.iterdir()] == ["qr-"]
    assert all(map(torch.equal, pivoted_qr_factors(weight, steps), (a, b)))


@pytest.mark.parametrize("rank", [0, 3])
def test_pivoted_qr_goes_on_where_nothing_is_left(rank: int) -> None:
    weight = random_weight(20, 3)[:, :rank] @ random_weight(3, 12)[:rank]
    a, b = pivoted_qr_factors(weight, range(12))
    assert torch.allclose(b.T @ b, torch.eye(12), atol=1e-5)
    assert torch.equal(a.sum(dim=0), torch.ones(12))
    assert torch.allclose(b[:, :rank] @ (b[:, :rank].T @ weight), weight, atol=1e-5)


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


def test_entries_differ_by_the_kernels_that_made_them(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kernels in ("AVX2", "COMPATIBLE", "AVX2"):
        monkeypatch.setenv("MKL_CBWR", kernels)
        svd_factors(random_weight(16, 16), 4, "minor", 1.0)
    assert len(list(cache.iterdir())) == 2


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
