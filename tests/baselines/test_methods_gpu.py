"""Every method on a GPU: the same start, forward and gradients as on the CPU."""

import copy

import pytest
import torch
from small_vits import build_vit
from torch import Tensor, nn

from baselines import METHODS
from benchmarks.methods import make_method
from soma import adapt

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_thread", "full_float32")]

DEVICE = "cuda"
# float32 rounds to 2^-24 = 6e-8; four blocks are some forty sums deep, which a GPU adds in another
# order. All errors of one sign would be 3e-6 of the largest number; gradients go through twice.
FORWARD, BACKWARD = 1e-5, 1e-4

ROWS = [*METHODS, "hf:LORA(r=4)", "hf:LORA(r=4, use_dora=true)"]
FITTING = {"recyclelora": {"rank": 4, "sub_rank": 1}}  # to a width of 32


def adapted(row: str, device: str) -> nn.Module:
    """The method on a small ViT that lies on a device."""
    vit = build_vit("class token").to(device)
    torch.manual_seed(11)
    adapt(make_method(row, FITTING.get(row, {})), vit)
    return vit


def moved(vit: nn.Module) -> nn.Module:
    """What learns a little off its start, where most methods change nothing."""
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learnt(vit).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws).to(parameter.device)
    return vit


def learnt(vit: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in vit.named_parameters() if p.requires_grad}


def assert_close(here: Tensor, there: Tensor, share: float) -> None:
    """Apart by no more than a share of the largest number."""
    difference = (here.detach().cpu() - there.detach()).abs().max().item()
    assert difference <= share * there.detach().abs().max().item()


@pytest.mark.parametrize("row", ROWS)
def test_start_forward_and_gradients_are_those_of_the_cpu(row: str, images: Tensor) -> None:
    cpu, gpu = adapted(row, "cpu"), adapted(row, DEVICE)
    start = gpu.state_dict()
    assert start.keys() == cpu.state_dict().keys()
    for name, value in cpu.state_dict().items():
        assert start[name].device.type == DEVICE, name
        assert_close(start[name], value, FORWARD)
    here, there = moved(copy.deepcopy(cpu).to(DEVICE)), moved(cpu)
    ours, theirs = here.forward_features(images.to(DEVICE)), there.forward_features(images)
    assert_close(ours, theirs, FORWARD)
    if not learnt(there):
        return
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(3))
    (ours * weights.to(DEVICE)).sum().backward()
    (theirs * weights).sum().backward()
    largest = max(p.grad.abs().max().item() for p in learnt(there).values() if p.grad is not None)
    for name, parameter in learnt(there).items():
        gradient = learnt(here)[name].grad
        assert (gradient is None) == (parameter.grad is None), name
        if gradient is not None:
            apart = (gradient.cpu() - parameter.grad).abs().max().item()
            assert apart <= BACKWARD * largest, name
