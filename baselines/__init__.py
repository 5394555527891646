"""The methods that SoMA is compared with, and their names."""

from baselines.adaptformer import AdaptFormer
from baselines.bitfit import BitFit
from baselines.dora import DoRA
from baselines.dude import DuDe
from baselines.edora import EDoRA
from baselines.freeze import Freeze
from baselines.full import Full
from baselines.lora import LoRA
from baselines.lora_middle import LoRAMiddle
from baselines.mica import MiCA
from baselines.milora import MiLoRA
from baselines.pissa import PiSSA
from baselines.recyclelora import RecycleLoRA
from baselines.rein import Rein
from baselines.salt import SALT
from baselines.soma_release import SoMARelease
from baselines.svf import SVF
from baselines.vpt import VPT, VPTShallow
from soma import Method, SoMA

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "freeze": Freeze,
    "bitfit": BitFit,
    "lora": LoRA,
    "dora": DoRA,
    "pissa": PiSSA,
    "milora": MiLoRA,
    "lora-middle": LoRAMiddle,
    "mica": MiCA,
    "dude": DuDe,
    "edora": EDoRA,
    "salt": SALT,
    "svf": SVF,
    "vpt": VPT,
    "vpt-shallow": VPTShallow,
    "adaptformer": AdaptFormer,
    "rein": Rein,
    "recyclelora": RecycleLoRA,
    "soma": SoMA,
    "soma-release": SoMARelease,
}
