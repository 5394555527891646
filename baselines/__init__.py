"""The methods that SoMA is compared with, and their names."""

from baselines.dora import DoRA
from baselines.freeze import Freeze
from baselines.full import Full
from baselines.lora import LoRA
from baselines.pissa import PiSSA
from baselines.soma_release import SoMARelease
from baselines.vpt import VPT
from soma import Method, SoMA

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "freeze": Freeze,
    "lora": LoRA,
    "pissa": PiSSA,
    "dora": DoRA,
    "vpt": VPT,
    "soma": SoMA,
    "soma-release": SoMARelease,
}
