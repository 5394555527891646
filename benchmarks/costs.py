"""What every method costs: parameters, start-up, training step, memory, evaluation (Table 5)."""

import copy
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines import METHODS
from benchmarks.backbones import load_backbone
from benchmarks.cell import make_cell
from benchmarks.distributed import make_fabric
from benchmarks.environment import REPOSITORY, checkout_at_start, environment
from benchmarks.errors import UserError, closest
from benchmarks.methods import make_method
from benchmarks.protocol import RANDOM, Backbone, Protocol
from benchmarks.report.costs import Cost, Costs
from benchmarks.report.spec import load_table
from benchmarks.tasks import load_protocol
from soma import Method, NotApplicable, NotFoldable, adapt, merge_qkv
from soma.backbone import patch_size, prefix_tokens
from soma.checkpoint import adapter_state

# Rows from outside, at the rank of the suite's own: the same methods as peft computes them.
OUTSIDE = {
    "hf:LoRA": "hf:LORA(r={rank}, lora_alpha={rank})",
    "hf:DoRA": "hf:LORA(r={rank}, lora_alpha={rank}, use_dora=true)",
}
# With decompositions cached, of which the median counts.
STARTS = 3


@dataclass(frozen=True)
class Profile:
    """What is measured.

    Attributes:
        protocol: whose backbone, crop and fields of methods.
        blocks: of the backbone; None for all.
        images: of a step; None for the protocol's batch.
        backbone: timm's name of another one, for square images of `size` pixels and methods with
            the fields that they have by default.
    """

    protocol: str
    blocks: int | None = None
    images: int | None = None
    backbone: str | None = None
    size: int = 224


PROFILES = {
    "mini": Profile("mini_gtav"),
    "paper": Profile("paper_gtav", blocks=1, images=1),
    "vit-s": Profile("paper_gtav", blocks=4, images=2, backbone="vit_small_patch16_224"),
}


def measure(
    name: str,
    rounds: int = 15,
    rows: tuple[str, ...] = (),
    device: str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> Costs:
    """The costs of all methods, or of some `rows`, on the backbone of a profile.

    Everything is measured in this process, on one thread. Rows take turns, with the frozen backbone
    between them, and the median over the rounds counts: what else the machine does then changes
    ratios little.

    Args:
        name: of a profile.
        rounds: how often each thing is timed.
        rows: names; none for all.
        device: "cpu", "cuda" or "cuda:<index>".
        report: takes lines on what is going on.

    Raises:
        UserError: no such profile, row or device.
    """
    if name not in PROFILES:
        raise UserError(f"--profile {name}: no costs of it{closest(name, PROFILES)}")
    checkout_at_start(REPOSITORY)
    torch.set_num_threads(1)
    profile = PROFILES[name]
    protocol = load_protocol(profile.protocol)
    spec, size, fields = (
        protocol.backbone,
        protocol.augment.crop,
        f"as {_named(protocol)} sets them",
    )
    if profile.backbone is not None:
        spec = Backbone(name=profile.backbone, weights=RANDOM, features=(0,))
        size, fields = profile.size, "at their defaults"
    methods = _methods(protocol, defaults=profile.backbone is not None)
    for row in rows:
        if row not in methods:
            raise UserError(f"--methods {row}: no such row{closest(row, methods)}")
    there = make_fabric(device, protocol.recipe.precision).device
    torch.manual_seed(0)
    plain = _backbone(spec, profile.blocks).to(there)
    depth = len(_backbone(spec, None, "meta").blocks)
    share = depth / len(plain.blocks)
    images = profile.images or protocol.recipe.batch
    sides = [math.ceil(size / side) for side in patch_size(plain)]
    tokens = math.prod(sides) + prefix_tokens(plain)
    bench = _Bench(plain, torch.randn(images, tokens, plain.embed_dim, device=there))
    made: dict[str, _Row] = {}
    for row in rows or methods:
        report(f"start-up of {row}")
        made[row] = _row(row, methods[row], bench, spec, share)
    applied = {key: row for key, row in made.items() if row.vit is not None}
    for number in range(rounds + 1):
        report(f"round {number} of {rounds}")
        bench.round(applied)
    costs = [row.cost if row.vit is None else bench.cost(row) for row in made.values()]
    return Costs(
        profile=name,
        fields=fields,
        backbone=f"{spec.name}, {depth} blocks of width {plain.embed_dim}",
        images=images,
        tokens=tokens,
        blocks=len(plain.blocks),
        depth=depth,
        rounds=rounds,
        step_seconds=statistics.median(bench.floors[1:]) * share,
        unit="clock" if bench.is_cuda else "processor time",
        environment=environment(),
        rows=tuple(costs),
        reference=next(iter(METHODS)),
    )


def _named(protocol: Protocol) -> str:
    return f"{protocol.name} version {protocol.version}"


def _methods(protocol: Protocol, *, defaults: bool) -> dict[str, Method]:
    """Row -> method with the fields that the protocol sets, or that it has by default."""
    methods = {
        row: make_cell(protocol, row, seed=0, placement="all").make_method() for row in METHODS
    }
    if defaults:
        start = {"start_block": next(iter(methods.values())).start_block}
        methods = {row: make_method(row, start) for row in METHODS}
    rank = methods[load_table("table4").reference].rank
    start = next(iter(methods.values())).start_block
    for row, text in OUTSIDE.items():
        methods[row] = make_method(text.format(rank=rank), {"start_block": start})
    return methods


def _backbone(spec: Backbone, blocks: int | None, device: str = "cpu") -> nn.Module:
    """The backbone with random weights, or the first blocks of it."""
    args = spec.args if blocks is None else {**spec.args, "depth": blocks}
    with torch.device(device):
        vit = load_backbone(Backbone(name=spec.name, args=args, weights=RANDOM, features=(0,)))
    return vit.requires_grad_(False).train()


@dataclass
class _Row:
    """A method while it is measured: adapted, folded, and the ratios so far."""

    cost: Cost
    vit: nn.Module | None = None
    folded: nn.Module | None = None
    steps: list[float] | None = None
    evaluations: list[float] | None = None
    folds: list[float] | None = None


def _row(row: str, method: Method, bench: "_Bench", spec: Backbone, share: float) -> _Row:
    try:
        (first, cached), vit = _startup(method, bench.plain)
    except NotApplicable as reason:
        return _Row(Cost(method=row, reason=str(reason)))
    # peft compares values, which the meta device has not; its layers are the same in every block.
    counted, times = vit, share
    if row not in OUTSIDE:
        counted, times = _backbone(spec, None, "meta"), 1
        adapt(method, counted)
    learns = times * sum(p.numel() for p in counted.parameters() if p.requires_grad)
    size = times * sum(t.numel() * t.element_size() for t in adapter_state(counted).values())
    cost = Cost(
        method=row,
        trainable=round(learns),
        adapter_bytes=round(size),
        startup=first * share,
        startup_cached=cached * share,
        kept_bytes=round(bench.kept(vit) * share),
        # Three float32 numbers for each: the gradient and AdamW's two moments.
        state_bytes=round(12 * learns),
    )
    return _Row(cost, vit, _folded(method, vit), [], [], [])


def _startup(method: Method, plain: nn.Module) -> tuple[tuple[float, float], nn.Module]:
    """Seconds of processor time, first and with decompositions cached, and the adapted backbone."""
    times = []
    with tempfile.TemporaryDirectory() as folder, _cache(folder):
        for _ in range(1 + STARTS):
            vit = copy.deepcopy(plain)
            torch.manual_seed(0)
            started = time.process_time()
            adapt(method, vit)
            times.append(time.process_time() - started)
    return (times[0], statistics.median(times[1:])), vit


@contextmanager
def _cache(folder: str) -> Iterator[None]:
    """Decompositions are kept in `folder`."""
    before = os.environ.get("SOMA_CACHE")
    os.environ["SOMA_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOMA_CACHE"]
        else:
            os.environ["SOMA_CACHE"] = before


def _folded(method: Method, vit: nn.Module) -> nn.Module | None:
    """A plain copy, q, k and v fused; None for what does not fold."""
    folded = copy.deepcopy(vit)
    try:
        method.placed(vit).fold(folded)
    except NotFoldable:
        return None
    merge_qkv(folded)
    return folded.eval()


class _Bench:
    """Times steps and evaluations of the blocks of backbones on the same tokens."""

    def __init__(self, plain: nn.Module, tokens: Tensor) -> None:
        self.plain, self.tokens = plain, tokens
        self.is_cuda = tokens.is_cuda
        self.gradient = torch.randn_like(tokens)
        self.fused = copy.deepcopy(plain).eval()
        merge_qkv(self.fused)
        self.floors: list[float] = []

    def round(self, rows: dict[str, _Row]) -> None:
        """Time every row once; the frozen backbone before and after each."""
        floor = self._step(self.plain, learns=True)
        self.floors.append(floor)
        for row in rows.values():
            step = self._step(row.vit, learns=_learns(row.vit))
            after = self._step(self.plain, learns=True)
            # Over the floors on both sides in time: a machine that gets slower meanwhile cancels
            # out.
            row.steps.append(2 * step / (floor + after))
            floor = after
            before = self._evaluation(self.fused)
            row.evaluations.append(self._evaluation(row.vit) / before)
            if row.folded is not None:
                row.folds.append(self._evaluation(row.folded) / before)

    def cost(self, row: _Row) -> Cost:
        """The cost of a row with the medians of its ratios; the first round has warmed up."""
        return row.cost.model_copy(
            update={
                "step": statistics.median(row.steps[1:]),
                "evaluation": statistics.median(row.evaluations[1:]),
                "folded": statistics.median(row.folds[1:]) if row.folds else None,
                "peak_bytes": self.peak(row.vit) if self.is_cuda else None,
            }
        )

    def kept(self, vit: nn.Module) -> int:
        """Bytes of the storages that autograd holds after a forward pass, parameters left out."""
        # By storage: views of one tensor are held once.
        own = {t.untyped_storage().data_ptr() for t in (*vit.parameters(), *vit.buffers())}
        held: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = self._forward(vit, self.tokens.clone().requires_grad_(_learns(vit)))
        del output
        return sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in own)

    def peak(self, vit: nn.Module) -> int:
        """Bytes of a step on the GPU: its own and those of the blocks, not of the other rows."""
        own = sum(t.nbytes for t in (*vit.parameters(), *vit.buffers()))
        others = torch.cuda.memory_allocated(self.tokens.device) - own
        torch.cuda.reset_peak_memory_stats(self.tokens.device)
        self._step(vit, learns=_learns(vit))
        return torch.cuda.max_memory_allocated(self.tokens.device) - others

    def _forward(self, vit: nn.Module, x: Tensor) -> Tensor:
        for block in vit.blocks:
            x = block(x)
        return x

    def _step(self, vit: nn.Module, *, learns: bool) -> float:
        x = self.tokens.clone().requires_grad_(learns)

        def work() -> None:
            y = self._forward(vit, x)
            if learns:
                y.backward(self.gradient)

        seconds = self._seconds(work)
        vit.zero_grad()
        return seconds

    def _evaluation(self, vit: nn.Module) -> float:
        vit.eval()
        with torch.no_grad():
            seconds = self._seconds(lambda: self._forward(vit, self.tokens))
        vit.train(vit is not self.fused)
        return seconds

    def _seconds(self, work: Callable[[], None]) -> float:
        # Of the processor where it does the work: other processes then count for little.
        clock = time.perf_counter if self.is_cuda else time.process_time
        if self.is_cuda:
            torch.cuda.synchronize(self.tokens.device)
        started = clock()
        work()
        if self.is_cuda:
            torch.cuda.synchronize(self.tokens.device)
        return clock() - started


def _learns(vit: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in vit.parameters())


def write(costs: Costs, folder: Path) -> list[Path]:
    """Write every format into a folder; the paths."""
    from benchmarks.record import write_atomically
    from benchmarks.report.costs import FORMATS, render

    paths = []
    for form in FORMATS[1:]:
        path = folder / f"table5.{costs.profile}.{form}"
        content = render(costs, form).encode()
        write_atomically(path, lambda file, content=content: file.write(content))
        paths.append(path)
    return paths
