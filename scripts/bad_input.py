"""Gives every command bad input and counts what does not end in one good line and exit code 2.

Command lines, protocols, settings, methods, records, weights, released files, images and archives;
all in one process, each for half a minute at most. Nothing may be written. A good line names the
bad value or file and the option or field that it stands in, says a way out, and holds no words of
Python's. Exits 1 if a kind fails.

    python scripts/bad_input.py              # every fourth kind
    python scripts/bad_input.py --all
    python scripts/bad_input.py WORDS        # all kinds whose name holds the words
"""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_worlds import write_world  # noqa: E402

from benchmarks.__main__ import main as command  # noqa: E402
from benchmarks.backbones import hash_of, load_backbone  # noqa: E402
from benchmarks.download.unpack import unpack  # noqa: E402
from benchmarks.errors import UserError  # noqa: E402
from benchmarks.tasks import load_protocol  # noqa: E402

SECONDS = 30
REFERENCE = ROOT / "results" / "reference"
SAMPLED = 4  # one of so many kinds, without --all


class Kind(NamedTuple):
    """One kind of bad input.

    Attributes:
        work: is given a folder that has to stay as it is, and returns an exit code.
        says: what its line has to hold, each in one of several spellings, whatever their capitals.
        quotes: the line quotes a user's own code, so that exceptions may be named.
    """

    name: str
    work: Callable[[Path], int]
    says: tuple[tuple[str, ...], ...]
    quotes: bool = False


Kinds = Iterator[Kind]
_PYTHON = re.compile(
    r"NoneType|\bNone\b|<class|<\S+ object|object at 0x|Traceback|\[Errno|__\w+__|_io\.|"
    r"pydantic|[Vv]alue error|\btuple\b|(?<!state )\bdict\b|\bbool\b|keyword argument|"
    r"allow_pickle|\(\)"
)
_EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception)\b|NotApplicable")
_WAY_OUT = re.compile(
    r"did you mean|known: |expected|should|must|has to|have to|needs?\b|lies? in|at most|at least|"
    r"field required|is (one of|given twice)|one of|only |to be fixed|--help|"
    r"\b(again|choose|copy|correct|delete|exclude|fetch|get|give|leave|list|make|makes|move|name|"
    r"restore|run|say|set|take|takes|unpack|use|write)\b"
)


def content(line: str, kind: Kind) -> str:
    """What is wrong with the words of a line; "" where it says what, where and the way out."""
    lower = line.lower()
    for spellings in kind.says:
        if not any(words.lower() in lower for words in spellings):
            return f"does not say {' or '.join(map(repr, spellings))}: {line[:300]}"
    for jargon in (_PYTHON, *(() if kind.quotes else (_EXCEPTION,))):
        if match := jargon.search(line):
            return f"says {match[0]!r}, words of Python's: {line[:300]}"
    return "" if _WAY_OUT.search(line) else f"says no way out: {line[:300]}"


def commands(line: str) -> Callable[[Path], int]:
    """Work that is a command line; OUT and DIR are a folder that has to stay as it is."""
    return lambda folder: command(shlex.split(line.replace("DIR", str(folder))))


def ended(work: Callable[[], object]) -> int:
    """The exit code of work that stands behind a command, as the command gives it."""
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


COMMAND_LINES = """
run | run mini_gtav | run nonsense lora | run mini_gtav somma | run mini_gtav ''
run mini_gtav lora --seed -1 | run mini_gtav lora --seed 4294967296 | run mini_gtav lora --seed x
run mini_gtav lora --seed 1.5 | run mini_gtav lora --placement nowhere --dry-run
run mini_gtav lora --recipe nothing --dry-run | run mini_gtav lora --device tpu --dry-run
run mini_gtav lora --device cuda:99 --dry-run | run mini_gtav lora --devices 0
run mini_gtav lora --nodes -3 | run mini_gtav lora --data-root DIR/absent --out DIR
run mini_gtav lora --engine detectron2 --dry-run | run mini_sdgod lora --engine yolo --dry-run
run mini_gtav lora --devices 2 --dry-run | run soma_gtav lora | run DIR/absent.yaml lora
run DIR lora | run mini_gtav DIR/absent.py:A | run mini_gtav lora --unknown
run mini_gtav 'hf:' --dry-run | run mini_gtav 'hf:LoRA(r=' --dry-run
run mini_gtav 'hf:LoRA(r=x)' --dry-run | run mini_gtav 'hf:LoRA(r=0)' --dry-run
run mini_gtav 'hf:LoRA(r=8, inference_mode=true)' --dry-run
run mini_gtav 'hf:LoRA(init_lora_weights=eva)' --dry-run | run mini_gtav 'hf:Nothing' --dry-run
run mini_gtav 'hf:LoRA(r=4, r=8)' --dry-run | run mini_gtav 'hf:OFT(oft_block_size=7)' --dry-run
sweep nonsense | sweep table1 --profile none | sweep table1 --seeds a --dry-run
sweep table1 --seeds -1 --dry-run | sweep table1 --seeds 1_0 --dry-run
sweep table1 --methods somma --dry-run | sweep table1 --workers 0 | sweep table1 --on moon
sweep table1 --placement sky --dry-run | sweep table1 --data-root DIR/absent --out DIR/out
table nonsense | table table1 --format pdf | table table1 --records DIR/absent
table table1 --records DIR
table table1 --methods somma | table table1 --reference somma | table table1 --columns nothing
table table1 --sort nothing | table table1 --seeds x | table table1 --placement sky
table table1 --selection first | table table1 --recipe nothing | table table1 --engine torchvision
table table1 --against DIR/absent | table table1 --profile none | table ../../etc/passwd
check somma | check lora --set recipe.lr=1 | check lora --set method.rank=x
check lora --set method.rang=4 | check lora --set method.rank=-1 | check 'hf:LoRA(r=x)' | check DIR
compare somma | compare lora --table none | compare lora --seeds x
compare lora --against DIR/absent
compare lora --recipe nothing | tune nonsense --methods lora | tune mini_gtav_source --methods somma
tune mini_gtav_source --methods lora --rates a | tune mini_gtav_source --methods lora --rates nan
tune mini_gtav_source --methods lora --decays -1 --data-root DIR
export DIR/absent.json DIR/o --to peft | export DIR DIR/o --to peft
export DIR/a.json DIR/o --to onnx
pictures DIR/absent.json | pictures DIR | verify nonsense --root DIR | verify gtav --root DIR/absent
verify gtav --root DIR --split nothing | verify DIR/absent.json --root DIR
download --dataset nonsense --root DIR | download --dataset gtav --root DIR --via pigeon
list nonsense | mini pretrain --steps -1 --out DIR | mini nonsense | bench startup somma
import DIR/absent.pth --protocol soma_gtav --data-root DIR
import DIR --protocol soma_gtav --data-root DIR
import DIR/a.pth --protocol nonsense | import DIR/a.pth --protocol soma_gtav | nonsense | --nonsense
"""

# Path of keys -> value of a protocol.
VALUES: list[tuple[str, Any]] = [
    ("version", "two"),
    ("version", None),
    ("task", "poetry"),
    ("name", "../../x"),
    ("profile", []),
    ("backbone.name", "vit_imaginary"),
    ("backbone.name", "swin_tiny_patch4_window7_224"),
    ("backbone.name", "resnet50"),
    ("backbone.args", {"depth": 0}),
    ("backbone.args", {"num_heads": 7}),
    ("backbone.args", {"nothing": 1}),
    ("backbone.features", []),
    ("backbone.features", [0, 1, 2]),
    ("backbone.features", [0, 1, 2, 99]),
    ("backbone.features", [3, 2, 1, 0]),
    ("backbone.features", [1, 1, 2, 3]),
    ("backbone.resize", "magic"),
    ("backbone.sha256", "short"),
    ("head.hidden", 33),
    ("head.hidden", -32),
    ("head.attention_heads", 7),
    ("head.queries", 3),
    ("head.scales", [1, 2, 4, 8]),
    ("head.kind", "magic"),
    ("head.points", 0),
    ("recipe.iterations", 0),
    ("recipe.iterations", 1.5),
    ("recipe.batch", 0),
    ("recipe.batch", "many"),
    ("recipe.lr", -1),
    ("recipe.lr", float("inf")),
    ("recipe.lr", float("nan")),
    ("recipe.schedule", "magic"),
    ("recipe.precision", "8-mixed"),
    ("recipe.precision", "16-mixed"),
    ("recipe.evaluate_at", [-1]),
    ("recipe.threads", 0),
    ("recipe.accumulate", 3),
    ("recipe.unknown", 1),
    ("augment.crop", 37),
    ("augment.crop", 0),
    ("augment.short_sides", []),
    ("augment.max_class_share", 2),
    ("augment.flip", -0.1),
    ("window.size", 0),
    ("window.stride", 0),
    ("source", []),
    ("source.0.card", "nonsense"),
    ("source.0.split", "nonsense"),
    ("targets.0.domain", "../../x"),
    ("targets.0.size", [0, 10]),
    ("targets.0.size", [10]),
    ("targets.0.exclude", 5),
    ("input.mean", [0.5]),
    ("input.std", [0, 1, 1]),
    ("placements", {}),
    ("placements.all", 1.5),
    ("placements.all", 99),
    ("default_placement", "sky"),
    ("selection", "first"),
    ("seeds", [-1]),
    ("seeds", "all"),
    ("methods.lora", {"fields": {"rang": 4}}),
    ("methods.lora", {"fields": {"rank": 0}}),
    ("methods.lora", {"recipe": {"lr": "high"}}),
    ("nonsense", 1),
]
# Field -> what a line may call it.
IN_OTHER_WORDS = {
    "placements.all": ("start_block",),
    "recipe.lr": ("line 1",),
    "methods.lora": ("method lora",),
    "placements": ("placement",),
    "source.0.card": ("data set",),
}
UNKNOWN = ("recipe.unknown", "nonsense")  # the line names them, not their value
TEXTS = {
    "empty": "",
    "a list": "- 1\n- 2\n",
    "no YAML": "name: [\n",
    "key twice": "name: a\nname: b\n",
    "anchor cycle": "a: &a\n  b: *a\n",
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "deep": "a: " + "[" * 100_000 + "]" * 100_000,
    "integer of 10,000 digits": f"version: {'9' * 10_000}\n",
    "complex key": "? [a, b]\n: 1\n",
    "tag": "version: !!python/object/apply:os.system [ls]\n",
    "control character": 'name: "a\\x1b[31m"\n',
    "extends itself": "extends: case\nname: case\n",
    "extends nothing": "extends: nonsense\nname: case\n",
}
SETTINGS = (
    *("recipe.lr", "recipe.lr=", "lr=1", "recipe.rate=1", "recipe.lr=abc", "recipe.lr=.nan"),
    *("method.alpha=.nan", "method.alpha=.inf", "method.rank=4.5", "method.rank=1e99", "method.=1"),
    *("method.start_block=1", "recipe.lr=&a [*a]", f"recipe.lr={'[' * 9999}", "recipe.batch=0x_"),
    *(
        "data.nowhere.exclude=[a]",
        "data.gtav.size=[1, 2]",
        "data.gtav.exclude=[1]",
        "method.rank=-1",
    ),
    *(
        "method.targets=[]",
        "method.targets=[z]",
        "method.rank=100000",
        "recipe.threads=-1",
        "=",
        "",
    ),
    "data.gtav.exclude=absent.txt",
)
FIELD = """
from dataclasses import dataclass
from typing import ClassVar
from baselines.lora import LoRA

@dataclass(frozen=True, kw_only=True)
class M(LoRA):
    source: ClassVar[str] = "here"
    {line}
"""
METHODS = {
    "syntax error": "class M(",
    "raises": "raise RuntimeError('at import')",
    "exits": "import sys; sys.exit(0)",
    "raises BaseException": "class E(BaseException): pass\nraise E('x')",
    "imports nothing": "import nothing_of_this_name",
    "no class": "x = 1",
    "no method": "class M: pass",
    "no dataclass": "from baselines.lora import LoRA\nclass M(LoRA):\n    rank: int = 3",
    "undefined annotation": FIELD.format(line="x: Nothing = 1"),
    "field that is no JSON": FIELD.format(line="x: object = object()"),
    "NaN field": FIELD.format(line="x: float = float('nan')"),
    "field without a type": FIELD.format(line="rank = 3"),
    "constructor fails": FIELD.format(line="def __post_init__(self): raise ValueError('no')"),
    "not UTF-8": b"\xff\xfe\x00",
    "null byte": b"x = 1\0",
}


def protocols() -> Kinds:
    """Values and texts of protocol files; `--dry-run` needs no data, so only the file can fail."""
    plain = load_protocol("smoke_gtav").model_dump(mode="json", exclude_unset=True)
    # The head with fields to get wrong: the smoke protocol's own has none.
    m2f = load_protocol("mini_gtav_m2f").model_dump(mode="json", exclude_unset=True)
    plain["head"] = m2f["head"]
    plain["name"] = "case"
    weights = Path(load_protocol("smoke_gtav").backbone.weights)
    plain["backbone"]["weights"] = str(ROOT / "benchmarks" / weights)

    def file(text: str) -> Callable[[Path], int]:
        def given(folder: Path) -> int:
            path = Path(tempfile.mkdtemp()) / "case.yaml"
            path.write_text(text)
            return command(["run", str(path), "lora", "--dry-run"])

        return given

    for name, text in TEXTS.items():
        yield Kind(f"protocol: {name}", file(text), (("case.yaml",),))
    for text in ("2026-02-31", "0x_"):
        whole = json.dumps(plain | {"version": "VERSION"}).replace('"VERSION"', text)
        yield Kind(
            f"protocol: version {text}", file(whole), (("case.yaml",), ("version",), (text,))
        )
    for path, value in VALUES:
        # A deep copy, and proof that a file can hold it.
        changed = json.loads(json.dumps(plain))
        *above, last = path.split(".")
        at: Any = changed
        for key in above:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        at[last] = value
        text = json.dumps(changed).replace("NaN", ".nan").replace("Infinity", ".inf")
        where = tuple(key for key in path.split(".") if not key.isdecimal())
        plainly = not isinstance(value, list | dict | None) and path not in UNKNOWN
        yield Kind(
            f"protocol: {path} = {value!r}",
            file(text),
            (
                ("case", where[0], "method lora"),
                (where[-1], *IN_OTHER_WORDS.get(path, ())),
                *([(str(value),)] if plainly else []),
            ),
        )


def settings() -> Kinds:
    """Values of --set."""
    for text in SETTINGS:
        words = ["run", "smoke_gtav", "lora", "--dry-run", "--set", text]
        name = text.partition("=")[0].removesuffix(".exclude").rpartition(".")[2]
        where = ("--set", "method lora", "smoke_gtav", "absent.txt")
        yield Kind(
            f"--set {text[:40]}", lambda _, words=words: command(words), (where, (name, "absent"))
        )


def methods() -> Kinds:
    """A user's own file."""
    for name, code in METHODS.items():

        def given(_: Path, code: str | bytes = code) -> int:
            path = Path(tempfile.mkdtemp()) / "own.py"
            path.write_bytes(code if isinstance(code, bytes) else code.encode())
            return command(["run", "smoke_gtav", f"{path}:M", "--dry-run"])

        yield Kind(f"method: {name}", given, (("own.py",),), quotes=True)


def records() -> Kinds:
    """Edited, copied and foreign records, in a folder of records and by themselves."""
    belongs = Path("mini_gtav/last-two-thirds/soma/seed5.json")
    plain = json.loads((REFERENCE / belongs).read_text())
    edits: dict[str, Callable[[dict[str, Any]], object]] = {
        "score": lambda r: r["evaluations"][-1]["domains"]["cityscapes"]["metrics"].update(
            mIoU=99.0
        ),
        "score of 250": lambda r: r["evaluations"][-1]["domains"]["cityscapes"]["metrics"].update(
            mIoU=250
        ),
        "NaN": lambda r: r["evaluations"][-1]["domains"]["cityscapes"]["metrics"].update(
            mIoU=float("nan")
        ),
        "images": lambda r: r["evaluations"][-1]["domains"]["cityscapes"].update(images=3),
        "role": lambda r: r["evaluations"][-1]["domains"]["cityscapes"].update(role="extra"),
        "digest": lambda r: r.update(digest="0" * 64),
        "seed": lambda r: r.update(seed=7),
        "label": lambda r: r.update(label="lora"),
        "label with escape codes": lambda r: r.update(label="a\x1b[31m"),
        "placement": lambda r: r.update(placement="all"),
        "status": lambda r: r.update(status="failed", reason="x"),
        "no cell": lambda r: r.pop("cell"),
        "no protocol in the cell": lambda r: r["cell"].pop("protocol"),
        "no method in the cell": lambda r: r["cell"].pop("method"),
        "protocol is a list": lambda r: r["cell"].update(protocol=[]),
        "version": lambda r: r.update(protocol_version=99),
        "unknown key": lambda r: r.update(nonsense=1),
        "kind": lambda r: r.update(kind="imported"),
    }
    contents = {name: _edited(plain, edit) for name, edit in edits.items()}
    contents |= {"empty": b"", "cut off": json.dumps(plain).encode()[:500], "list": b"[]"}
    contents |= {"deep": b"[" * 100_000, "no UTF-8": b"\xff{}", "null": b"null"}
    for name, content in contents.items():

        def given(_: Path, content: bytes = content) -> int:
            folder = Path(tempfile.mkdtemp())
            (folder / belongs).parent.mkdir(parents=True)
            (folder / belongs).write_bytes(content)
            # The true matrices: an edited score has to show beside them.
            matrices = REFERENCE / belongs.with_suffix(".npz")
            (folder / belongs).with_suffix(".npz").write_bytes(matrices.read_bytes())
            return command(["table", "table1", "--records", str(folder)])

        yield Kind(f"record: {name}", given, (("seed5.json",),))
        if name in ("empty", "cut off", "list", "no cell", "deep", "kind"):
            for words in ("export FILE DIR/o --to peft", "pictures FILE", "verify FILE --root DIR"):

                def alone(folder: Path, words: str = words, content: bytes = content) -> int:
                    path = Path(tempfile.mkdtemp()) / "seed5.json"
                    path.write_bytes(content)
                    return commands(words.replace("FILE", str(path)))(folder)

                yield Kind(f"record: {name}, {words.split()[0]}", alone, (("seed5.json",),))
    yield Kind("record: copied", lambda _: _copied(belongs), (("seed9.json",), ("seed5.json",)))
    for name, data in (("damaged", b"no matrices"), ("empty", b"")):
        yield Kind(
            f"matrices: {name}", lambda _, data=data: _copied(belongs, data), (("seed5.npz",),)
        )
    for name, data in (("damaged", b"x" * 99), ("empty", b""), ("absent", None)):
        yield Kind(
            f"adapter: {name}",
            lambda folder, data=data: _adapter(belongs, data, folder),
            (("seed5.safetensors",),),
        )


def _edited(plain: dict[str, Any], edit: Callable[[dict[str, Any]], object]) -> bytes:
    record = json.loads(json.dumps(plain))
    edit(record)
    return json.dumps(record).encode()


def _copied(belongs: Path, matrices: bytes | None = None) -> int:
    folder = Path(tempfile.mkdtemp())
    place = belongs if matrices is not None else belongs.with_name("seed9.json")
    (folder / place).parent.mkdir(parents=True)
    (folder / place).write_bytes((REFERENCE / belongs).read_bytes())
    (folder / place).with_suffix(".npz").write_bytes(matrices or b"")
    return command(["table", "table1", "--records", str(folder)])


def _adapter(belongs: Path, weights: bytes | None, out: Path) -> int:
    path = Path(tempfile.mkdtemp()) / "seed5.json"
    path.write_bytes((REFERENCE / belongs).read_bytes())
    if weights is not None:
        path.with_suffix(".safetensors").write_bytes(weights)
    return command(["export", str(path), str(out / "o"), "--to", "folded"])


def weights() -> Kinds:
    """Files of backbone weights, and released files, of every wrong kind."""
    names = {"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}
    contents: dict[str, Any] = {
        "empty": b"",
        "web page": b"<!doctype html>quota",
        "text": b"no weights",
        "list": [1, 2],
        "nothing": {},
        "nested": {"teacher": names},
        "prefixed": {f"backbone.{key}": value for key, value in names.items()},
        "object": {"a": Path},
        "half of the names": names,
        "number": {"a": 1.5},
        "NaN": {"backbone.model.norm.bias": torch.full((3,), torch.nan)},
        "half precision": {"backbone.model.norm.bias": torch.zeros(3, dtype=torch.float16)},
        "a detector": {"query_head.a": torch.zeros(1)},
    }

    def written(content: Any, ending: str) -> Path:
        path = Path(tempfile.mkdtemp()) / f"w{ending}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif ending == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        return path

    for name, content in contents.items():
        tensors = (
            isinstance(content, dict)
            and content
            and set(map(type, content.values())) == {torch.Tensor}
        )
        for ending in (".pth", ".safetensors"):
            if ending == ".pth" or isinstance(content, bytes) or tensors:

                def given(_: Path, content: Any = content, ending: str = ending) -> int:
                    path = written(content, ending)
                    spec = load_protocol("smoke_gtav").backbone
                    changes = {"weights": str(path), "sha256": hash_of(path)}
                    return ended(lambda: load_backbone(spec.model_copy(update=changes)))

                yield Kind(f"weights: {name}, {ending}", given, ((f"w{ending}",),))

        def released(folder: Path, content: Any = content) -> int:
            line = f"import {written(content, '.pth')} --protocol soma_gtav --data-root DIR"
            return commands(line)(folder)

        yield Kind(f"released: {name}", released, (("w.pth",),))


def images() -> Kinds:
    """Worlds with a broken file, read by a run of two steps."""

    def damaged(change: Callable[[Path, Path], object]) -> Callable[[Path], int]:
        def given(folder: Path) -> int:
            home = Path(tempfile.mkdtemp())
            write_world(home / "data", "gtav", "train", count=4)
            write_world(home / "data", "bdd100k", "val", count=2)
            images = sorted(p for p in (home / "data" / "gtav" / "images").rglob("*.png"))
            labels = sorted(p for p in (home / "data" / "gtav" / "labels").rglob("*.png"))
            change(images[0], labels[0])
            plain = load_protocol("smoke_gtav").model_dump(mode="json", exclude_unset=True)
            source = {"domain": "gtav", "card": "gtav", "split": "train", "holdout": 2}
            plain |= {"name": "case", "data_root": None, "source": [source]}
            plain["validation"] = [source | {"domain": "gtav_held_out"}]
            plain["targets"] = [
                {"domain": "bdd100k", "card": "bdd100k", "split": "val", "size": [32, 48]}
            ]
            weights = load_protocol("smoke_gtav").backbone.weights
            plain["backbone"]["weights"] = str(ROOT / "benchmarks" / weights)
            plain["recipe"] |= {"iterations": 2, "loader_workers": 0, "evaluate_at": []}
            (home / "case.yaml").write_text(json.dumps(plain))
            line = f"run {home / 'case.yaml'} freeze --data-root {home / 'data'} --out DIR"
            return commands(line)(folder)

        return given

    def small(path: Path) -> None:
        from PIL import Image

        Image.new("P" if "labels" in str(path) else "RGB", (8, 8)).save(path)

    said = (("zurich_000000_000019.png",),)
    yield Kind("image: empty", damaged(lambda image, _: image.write_bytes(b"")), said)
    yield Kind("image: text", damaged(lambda image, _: image.write_bytes(b"no image")), said)
    yield Kind(
        "image: cut off",
        damaged(lambda image, _: image.write_bytes(image.read_bytes()[:400])),
        said,
    )
    yield Kind("image: a folder", damaged(lambda image, _: (image.unlink(), image.mkdir())), said)
    yield Kind("image: missing", damaged(lambda image, _: image.unlink()), said)
    yield Kind("image: another size than its label", damaged(lambda image, _: small(image)), said)
    yield Kind("label: empty", damaged(lambda _, label: label.write_bytes(b"")), said)
    yield Kind(
        "label: cut off",
        damaged(lambda _, label: label.write_bytes(label.read_bytes()[:300])),
        said,
    )
    yield Kind("label: missing", damaged(lambda _, label: label.unlink()), said)
    yield Kind("label: another size than its image", damaged(lambda _, label: small(label)), said)


def archives() -> Kinds:
    """What a download may bring; nothing may leave the folder that it is unpacked into."""
    zips = {
        "parent": "../out.txt",
        "absolute": "/tmp/bad_input_out.txt",
        "deep parent": "a/../../b",
    }
    for name, member in zips.items():
        for form, made in (("zip", _zip), ("tar", _tar)):
            yield Kind(
                f"archive: {form} with {name}",
                lambda f, n=f"a.{form}", made=made, m=member: _unpacked(f, n, made(m)),
                ((f"a.{form}",), (member,)),
            )
    for ending in ("zip", "tar", "tar.gz"):
        for name, data in (
            ("empty", b""),
            ("web page", b"<!doctype html>"),
            ("cut", _zip("a")[:30]),
        ):
            yield Kind(
                f"archive: {ending}, {name}",
                lambda f, n=f"a.{ending}", d=data: _unpacked(f, n, d),
                ((f"a.{ending}",),),
            )
    for name, held in (
        ("link outside", _tar("a", link="../../etc")),
        ("device", _tar("a", kind=tarfile.CHRTYPE)),
    ):
        yield Kind(
            f"archive: {name}",
            lambda f, held=held: _unpacked(f, "a.tar", held),
            (("a.tar",), ("'a'",)),
        )


def _zip(member: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(member, "x")
    return held.getvalue()


def _tar(member: str, link: str = "", kind: bytes = tarfile.REGTYPE) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        entry = tarfile.TarInfo(member)
        entry.type, entry.linkname = (tarfile.SYMTYPE, link) if link else (kind, "")
        archive.addfile(entry)
    return held.getvalue()


def _unpacked(folder: Path, name: str, content: bytes) -> int:
    home = Path(tempfile.mkdtemp())
    (home / name).write_bytes(content)
    return ended(lambda: unpack(home / name, folder / "unpacked", lambda _: None))


# Words of command lines that are as they should be; and what a line may call an option.
_GOOD = re.compile(
    r"(mini|soma)_\w+|lora|gtav|table1|DIR(/out|/o|/a\.\w+)?|peft|startup|pretrain|2|--dry-run|-"
)
_CALLED = {"--dataset": ("data set",), "--methods": ("method", "row"), "--reference": ("row",)}


def told(line: str) -> tuple[tuple[str, ...], ...]:
    """What the error of a command line has to hold: a bad value of it, and that value's option."""
    words, values, options = shlex.split(line), [], []
    for before, word in pairwise(["", *words]):
        option = word.startswith("--") and word != words[-1]
        if (before or len(words) == 1) and not option and not _GOOD.fullmatch(word):
            # A field's name and its value, apart or together.
            key, _, value = word.removeprefix("DIR").rpartition("=")
            values += [key.rpartition(".")[2], value]
            if before.startswith("--") and "/" not in word and "=" not in word:
                called = _CALLED.get(before, (before.strip("-").removesuffix("s"),))
                options += [before, *called]
    values = [value for value in values if value] if line != "run" else []
    return tuple(filter(None, (tuple(values), tuple(options))))


def everything() -> Kinds:
    """All kinds of bad input by name."""
    for line in " | ".join(COMMAND_LINES.strip().splitlines()).split(" | "):
        yield Kind(line, commands(line), told(line))
    for group in (settings, methods, protocols, records, weights, images, archives):
        yield from group()


class _TooLong(BaseException):
    """No handler of the suite catches it."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def verdict(kind: Kind) -> str:
    """What is wrong with the end of a kind; "" where it is a good line, exit code 2 and no file."""
    with tempfile.TemporaryDirectory() as folder:
        said, out = io.StringIO(), io.StringIO()
        signal.signal(signal.SIGALRM, _stop)
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
                code = kind.work(Path(folder))
        except _TooLong:
            return f"hangs ({SECONDS} s)"
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
            at = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {error!s:.200} at {at}"
        finally:
            signal.alarm(0)
        if code != 2:
            return f"exit code {code}: {(said.getvalue() + out.getvalue()).strip()[-200:]}"
        errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        if len(errors) != 1 or "Traceback" in said.getvalue():
            return f"not one line: {said.getvalue()[-300:]}"
        left = [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()]
        return f"left {left}" if left else content(errors[0].removeprefix("error: "), kind)


def main(words: str = "") -> int:
    """Try the kinds; print those that fail, and the count."""
    started, wrong = time.perf_counter(), 0
    warnings.simplefilter("ignore")
    # No kind may depend on the network: a name that nobody has is refused without asking.
    os.environ["HF_HUB_OFFLINE"] = "1"
    kinds = [*everything()]
    tried = [kind for kind in kinds if words in kind.name] if words else kinds[::SAMPLED]
    tried = kinds if words == "--all" else tried
    for kind in tried:
        if fault := verdict(kind):
            wrong += 1
            print(f"{kind.name}\n    {fault}", flush=True)
    seconds = time.perf_counter() - started
    print(f"{len(tried)} of {len(kinds)} kinds of bad input, {wrong} wrong; {seconds:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
