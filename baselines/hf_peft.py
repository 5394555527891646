"""Any tuner of Hugging Face peft that adapts linears, as a method; peft itself is optional."""

import copy
import importlib
import json
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from soma import NotFoldable
from soma.adopt import adopt
from soma.backbone import linear_of, parameter_role, replace_module
from soma.method import Targeted

# They want calls from the training loop, hooks that no copy survives, or more than the linears.
UNFIT = {"ADALORA", "ADAPTION_PROMPT", "LN_TUNING", "OSF", "POLY", "SHADOW", "TRAINABLE_TOKENS"}
SET_HERE = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias"}
# Random by peft's default, though zero on demand; the others start at the pretrained weights.
RANDOM = {"C3A", "FOURIERFT", "UNILORA", "VBLORA"}
# Parts of names: what starts at one, or at values of the pretrained weight, must not decay to zero.
GAINS = {"lora_magnitude_vector", "ia3_l", "boft_s", "road_alpha", "vector_a", "vector_b"}
GAINS |= {"frod_lambda_l"}


@dataclass(frozen=True, kw_only=True)
class HFPeft(Targeted):
    """A tuner of peft on the target linears; its arguments have the names and defaults of peft.

    Attributes:
        tuner: its name in peft's `PeftType`, such as "OFT"; capitals do not matter.
        options: JSON object of the arguments of its config. Which linears it sits on is `targets`
            and `start_block`, whether their biases learn too is `train_bias`.
    """

    source: ClassVar[str] = "github.com/huggingface/peft. Its documentation names each paper"
    packages: ClassVar[tuple[str, ...]] = ("peft",)  # their versions are part of a cell

    tuner: str
    options: str = "{}"
    train_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tuner", self.tuner.upper())
        object.__setattr__(self, "options", json.dumps(json.loads(self.options), sort_keys=True))
        self._config([])

    @property
    def exact_start(self) -> bool:
        """Not where an option or the tuner's default asks for random values."""
        asked = [v for name, v in json.loads(self.options).items() if name.startswith("init_")]
        return False not in asked and (self.tuner not in RANDOM or True in asked)

    @property
    def exact_gradient(self) -> bool:
        """Not with `use_dora`, whose norm counts as a constant."""
        return not json.loads(self.options).get("use_dora", False)

    def _config(self, names: list[str]) -> Any:
        """The config of the tuner for the modules of these names."""
        known, options = _peft("PEFT_TYPE_TO_CONFIG_MAPPING"), json.loads(self.options)
        known = {name.value: vars(kind)["__dataclass_fields__"] for name, kind in known.items()}
        fit = [name for name in known if name not in UNFIT and "target_modules" in known[name]]
        if self.tuner not in fit:
            note = f"known: {', '.join(sorted(fit))}; DoRA, PiSSA and MiCA are arguments of LORA"
            raise ValueError(f"{self.tuner}: no tuner of linears; {note}")
        if wrong := sorted(options.keys() - (known[self.tuner].keys() - SET_HERE)):
            raise ValueError(f"{self.tuner} takes no argument {wrong[0]!r} here")
        if "feedforward_modules" in known[self.tuner]:  # (IA)^3 rescales what enters fc2
            second = [name for name in names if parameter_role(f"{name}.weight") == "fc2"]
            options.setdefault("feedforward_modules", second)
        try:
            kind = _peft("PEFT_TYPE_TO_CONFIG_MAPPING")[self.tuner]
            return kind(target_modules=names, **options)
        except ImportError as error:
            raise ValueError(f"{self.tuner}: {error}") from None

    def attach(self, vit: nn.Module) -> None:
        """Let peft replace the target linears from `start_block` on.

        Raises:
            NotApplicable: a target role is absent, or no plain linear.
            ValueError: peft refuses, a size for instance.
        """
        chosen = self.target_linears(vit)
        before = {name: linear.weight.detach().clone() for name, linear in chosen.items()}
        try:
            with warnings.catch_warnings(action="ignore"):
                tuner = _peft("PEFT_TYPE_TO_TUNER_MAPPING")[self.tuner]
                tuner(vit, self._config(list(before)), adapter_name="default")
        except (ImportError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{self.tuner}: peft refuses: {error}") from error
        del vit.peft_config
        adopt(vit, before)

    def trains(self, name: str) -> bool:
        """The biases of the target linears, if they are to learn."""
        is_bias = name.endswith(".bias") and parameter_role(name) in self.targets
        return self.train_bias and is_bias

    def fold(self, vit: nn.Module) -> None:
        """Let peft merge each linear; q, k and v stay split."""
        plain = {}  # put in at the end: a refusal half-way leaves the backbone as it was
        for name, layer in vit.named_modules():
            if not hasattr(layer, "base_layer"):
                continue
            merged = copy.deepcopy(layer)
            try:
                merged.merge()
            except (NotImplementedError, ValueError) as error:
                raise NotFoldable(f"peft does not merge {self.tuner}: {error}") from None
            weight, bias = merged.base_layer.weight.detach(), merged.base_layer.bias
            plain[name] = linear_of(weight, None if bias is None else bias.detach(), like=layer)
        for name, linear in plain.items():
            replace_module(vit, name, linear)
        super().fold(vit)

    def decay(self, name: str) -> str:
        """To zero, the practice with peft, but for gains."""
        return "none" if GAINS & set(name.split(".")) else super().decay(name)


def _peft(name: str) -> Any:
    try:
        return getattr(importlib.import_module("peft"), name)
    except ImportError:
        raise ValueError("hf: methods need Hugging Face peft; run: pip install peft") from None
