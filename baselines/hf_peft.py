"""Any tuner of Hugging Face peft that adapts linears, as a method; peft itself is optional."""

import copy
import importlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from soma import NotFoldable
from soma.adopt import adopt
from soma.backbone import linear_of, parameter_role, replace_module
from soma.method import Targeted

# They want calls from the training loop, hooks that no copy survives, or more than the linears.
UNFIT = {"ADALORA", "ADAPTION_PROMPT", "LN_TUNING", "OSF", "POLY", "SHADOW", "TRAINABLE_TOKENS"}
# What learns, and where, is the suite's: `targets`, `start_block`, `train_bias`.
SET_HERE = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias"}
SET_HERE |= {"target_parameters", "modules_to_save", "trainable_token_indices", "layer_replication"}
# Starts of LORA that need activations, gradients or quantised weights; without them it is LoRA.
NEED_DATA = {"corda", "eva", "loftq", "lora_ga"}
# Random by peft's default, though zero on demand; the others start at the pretrained weights.
RANDOM = {"C3A", "FOURIERFT", "UNILORA", "VBLORA"}
# Options that take something out of the weight, and give nothing back at the start.
INEXACT = {"kasa_config", "para"}
# Their options act across blocks; those of the others show on the linears of one.
ACROSS = {"LILY", "TINYLORA"}
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

    Raises:
        ValueError: peft is missing, or does not know or take the tuner or one of its options.
    """

    source: ClassVar[str] = "github.com/huggingface/peft. Its documentation names each paper"
    # Their versions are part of a cell: another version may compute something else.
    packages: ClassVar[tuple[str, ...]] = ("peft",)

    tuner: str
    options: str = "{}"
    train_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tuner", self.tuner.upper())
        options = json.loads(self.options, object_pairs_hook=_without_repetition)
        # One text for equal options: cells and adapters are compared by it.
        object.__setattr__(self, "options", json.dumps(options, sort_keys=True))
        self._config([], options)

    @property
    def option_types(self) -> dict[str, Any]:
        """Name -> type that peft states for it, of every option that is given.

        Raises:
            ValueError: peft is missing.
        """
        stated = get_type_hints(type(self._config([], {})))
        return {name: stated[name] for name in json.loads(self.options)}

    @property
    def exact_start(self) -> bool:
        """Not where an option or the tuner's default asks for random or reduced weights."""
        options = json.loads(self.options)
        asked = [value for name, value in options.items() if name.startswith("init_")]
        drawn = self.tuner in RANDOM and not any(value is True for value in asked)
        reduced = any(options.get(name) for name in INEXACT)
        return not (drawn or reduced or any(value is False for value in asked))

    @property
    def exact_gradient(self) -> bool:
        """Not with `use_dora`, whose norm counts as a constant."""
        return not json.loads(self.options).get("use_dora", False)

    def _config(self, names: list[str], options: Mapping[str, Any]) -> Any:
        """The config of the tuner for the modules of these names."""
        kinds = {name.value: kind for name, kind in _peft("PEFT_TYPE_TO_CONFIG_MAPPING").items()}
        arguments = {name: {field.name for field in fields(kind)} for name, kind in kinds.items()}
        fit = [name for name in kinds if name not in UNFIT and "target_modules" in arguments[name]]
        if self.tuner not in fit:
            note = f"known: {', '.join(sorted(fit))}; DoRA, PiSSA and MiCA are arguments of LORA"
            raise ValueError(f"{self.tuner}: no tuner of linears; {note}")
        common = {field.name for field in fields(_peft("PeftConfig"))}
        if wrong := sorted(options.keys() - (arguments[self.tuner] - SET_HERE - common)):
            raise ValueError(
                f"{self.tuner} takes no argument {wrong[0]!r} here; what learns is set by targets, "
                "start_block and train_bias"
            )
        if (start := options.get("init_lora_weights")) in NEED_DATA:
            raise ValueError(f"init_lora_weights={start} needs data to start from; none is given")
        here: dict[str, Any] = {}
        # (IA)^3 rescales what enters fc2, and what leaves any other linear.
        if "feedforward_modules" in arguments[self.tuner]:
            second = [name for name in names if parameter_role(f"{name}.weight") == "fc2"]
            here["feedforward_modules"] = second
        if "progressbar" in arguments[self.tuner]:
            here["progressbar"] = False
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                config = kinds[self.tuner](target_modules=names, **here | dict(options))
            except ImportError as error:
                raise ValueError(f"{self.tuner}: {error}") from None
        if said:
            raise ValueError(
                f"{self.tuner}: peft warns: {said[0].message}; set what it takes as it is"
            )
        return config

    def attach(self, vit: nn.Module) -> None:
        """Let peft replace the target linears from `start_block` on.

        Raises:
            NotApplicable: a target role is absent, or no plain linear.
            ValueError: peft refuses, changes or ignores an option, a size for instance.
        """
        chosen = self.target_linears(vit)
        if not any(linear.weight.is_meta for linear in chosen.values()):
            self._require_what_was_asked(chosen)
        self.attach_empty(vit)

    def attach_empty(self, vit: nn.Module) -> None:
        """The same without a look at what the options do.

        Raises:
            ValueError: peft refuses the options, or warns of one.
        """
        chosen = self.target_linears(vit)
        before = {name: linear.weight.detach().clone() for name, linear in chosen.items()}
        self._inject(vit, list(chosen), json.loads(self.options))
        adopt(vit, before)

    def _inject(self, vit: nn.Module, names: list[str], options: Mapping[str, Any]) -> None:
        """Put peft's layers in place.

        Raises:
            ValueError: peft refuses the options, or warns of one.
        """
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                tuner = _peft("PEFT_TYPE_TO_TUNER_MAPPING")[self.tuner]
                config = self._config(names, options)
                # It shares among linears that one target matches, so that full names would share
                # nothing.
                if self.tuner == "LILY":
                    leaves = {re.sub(r"^blocks\.\d+\.", "", name) for name in names}
                    others = [name for name, _ in vit.named_modules() if name not in names]
                    config.target_modules, config.exclude_modules = leaves, others
                tuner(vit, config, adapter_name="default")
        except (ImportError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{self.tuner}: peft refuses: {error}") from error
        del vit.peft_config
        for name in names if self.tuner == "LORA" else ():
            layer = vit.get_submodule(name)
            if (rank := layer.r["default"]) != (taken := len(layer.lora_A["default"].weight)):
                raise ValueError(f"{self.tuner}: r = {rank}, but peft takes {taken} for {name}")
        # Some are about a missing compiler, and say nothing of the options.
        texts = [str(warning.message) for warning in said]
        if about := [text for text in texts if any(name in text for name in options)]:
            raise ValueError(f"{self.tuner}: peft warns: {about[0]}; set what it takes as it is")

    def _require_what_was_asked(self, chosen: Mapping[str, nn.Linear]) -> None:
        """Every option must count, as it was given: tried on copies of linears.

        Raises:
            ValueError: peft ignores or changes an option or warns of it, or nothing would learn.
        """
        options = json.loads(self.options)
        patterns = [name for name in options if name.endswith("_pattern")]
        for name in patterns:
            _require_matches(name, options[name], list(chosen))
        if self.tuner not in ACROSS and not patterns:
            block = re.match(r"blocks\.\d+\.", next(iter(chosen)))[0]
            chosen = {name: linear for name, linear in chosen.items() if name.startswith(block)}
        result = self._tried(chosen, options)
        if not any(gradient.any() for gradient in result["gradients"]):
            raise ValueError(f"{self.tuner}: with these options nothing would learn")
        for what, other in _variants(options, self._config([], {})):
            try:
                changed = self._tried(chosen, other)
            except ValueError:
                # Without it peft refuses, so that it was not ignored.
                continue
            if _same(result, changed):
                raise ValueError(f"{self.tuner}: peft {what}")

    def _tried(
        self, linears: Mapping[str, nn.Linear], options: Mapping[str, Any]
    ) -> dict[str, list[Tensor]]:
        """Outputs and gradients of copies, with other values in what learns than at the start."""
        root = nn.Module()
        for name, linear in linears.items():
            _put(root, name, copy.deepcopy(linear).to("cpu"))
        # The trial must not move the generator that the real start is drawn from.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._inject(root, list(linears), options)
            learning = [p for p in root.parameters() if p.requires_grad]
            for index, parameter in enumerate(learning):
                torch.manual_seed(index)
                # B starts at zero in most tuners, and would hide what an option does to the output.
                parameter.data += 0.05 * torch.randn_like(parameter)
            outputs = {}
            for mode in (False, True):
                root.train(mode)
                torch.manual_seed(1)
                outputs[mode] = [
                    root.get_submodule(name)(
                        torch.randn(1, 4, linear.in_features, dtype=linear.weight.dtype)
                    )
                    for name, linear in linears.items()
                ]
        loss = sum(output.square().sum() for output in outputs[True])
        if loss.requires_grad:
            loss.backward()
        gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
        return {"outputs": outputs[False] + outputs[True], "gradients": gradients}

    def trains(self, name: str) -> bool:
        """The biases of the target linears, if they are to learn."""
        is_bias = name.endswith(".bias") and parameter_role(name) in self.targets
        return self.train_bias and is_bias

    def fold(self, vit: nn.Module) -> None:
        """Let peft merge each linear; q, k and v stay split.

        Raises:
            NotFoldable: peft does not merge this tuner.
        """
        # Put in at the end: a refusal half-way leaves the backbone as it was.
        plain = {}
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


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"options: {twice[0]} is given twice")
    return dict(pairs)


def _require_matches(pattern: str, values: Mapping[str, Any], names: list[str]) -> None:
    """Each key must mean one of the linears, and each linear one key."""
    met: dict[str, str] = {}
    for key in values:
        # Matched as peft matches, which reads its keys as patterns.
        matching = [name for name in names if re.match(rf"(.*\.)?({key})$", name)]
        if not matching:
            raise ValueError(f"{pattern}: {key!r} is the name of no linear that is adapted")
        for name in matching:
            if (first := met.setdefault(name, key)) != key:
                raise ValueError(f"{pattern}: {first!r} and {key!r} both mean {name}")


def _variants(options: dict[str, Any], default: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(What peft does if the result is the same, options that should give another one)."""
    for name, value in options.items():
        if name.endswith("_pattern"):
            for key, number in value.items():
                if type(number) is int and number > 1:
                    other = options | {name: value | {key: number - 1}}
                    yield f"takes another number than {name} = {number} for {key}", other
        elif value != getattr(default, name) and "dropout" not in name:
            yield f"ignores {name}", {key: options[key] for key in options.keys() - {name}}
            if type(value) is int and value > 1:
                yield f"takes another number than {name} = {value}", options | {name: value - 1}


def _same(first: dict[str, list[Tensor]], second: dict[str, list[Tensor]]) -> bool:
    return all(
        len(first[kind]) == len(second[kind])
        and all(torch.equal(a, b) for a, b in zip(first[kind], second[kind], strict=True))
        for kind in first
    )


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module under a dotted name, with empty modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(leaf, module)
