"""Lists what the docstrings of public functions, methods and classes lack; exits 1 if any do.

`Raises:` names the errors of the body and of the private helpers it calls; a tensor or an array has
its shape, as in `(B, C, H, W)`; module and package may say both for all. `Args:` and `Attributes:`
have a line per name. "See `x`" points to an interface. Special methods belong to their class.
"""

import ast
import re
import sys
from pathlib import Path

PACKAGES = ("soma", "baselines", "benchmarks", "scripts")
SIZE = r"(?:\.\.\.|\d+|\w\w?|[A-Z]+|out|rank|rest|width|height|classes|tokens)(?: ?[-+*/x] ?\w+)*"
SHAPE = rf"\((?:{SIZE}, ?)+(?:{SIZE})?\)|\b[Ss]calar|\b(?:any|same|its|their|one) shape"
ARRAY = r"^(?!.*(dict|Mapping|Callable)\[).*\b(Tensor|ndarray)\b"
Function, Known = ast.FunctionDef, dict[str, ast.FunctionDef]


def errors(node: ast.AST, helpers: Known, seen: frozenset[str] = frozenset()) -> set[str]:
    """Names of the errors that leave a body, those of private helpers too."""
    if isinstance(node, ast.Try):
        # A handler that ends in a bare `raise` lets its error through.
        ends = [h.type for h in node.handlers if h.type and ast.unparse(h.body[-1]) != "raise"]
        caught = " ".join(map(ast.unparse, ends))
        body = ast.Module([] if re.search(r"\b(Exception|[A-Z_]+)\b", caught) else node.body, [])
        rest = ast.Module([*node.handlers, *node.orelse, *node.finalbody], [])
        names = errors(body, helpers, seen) - set(re.findall(r"\w+", caught))
        return names | errors(rest, helpers, seen)
    inner = [n for n in ast.iter_child_nodes(node) if not isinstance(n, Function | ast.Lambda)]
    names = set().union(*(errors(n, helpers, seen) for n in inner))
    called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
    if called in helpers and called.startswith("_") and called not in seen:
        names |= errors(helpers[called], helpers, seen | {called})
    if isinstance(node, ast.Raise) and node.exc:
        kind = ast.unparse(getattr(node.exc, "func", node.exc))
        made = getattr(helpers.get(kind), "returns", None)
        names |= set(re.findall(r"\b[A-Z]\w+", ast.unparse(made) if made else kind))
    return names - {"SystemExit", "Exit", "NotImplementedError", "AssertionError"}


def lacks(node: Function | ast.ClassDef, helpers: Known, above: str) -> list[str]:
    """What the docstring of a public function or class lacks; `above`: the module's."""
    inside = [node] if isinstance(node, Function) else node.body
    own = [n for n in inside if isinstance(n, Function) and (n is node or n.name[:2] == "__")]
    types = [a.annotation for n in own for a in ast.walk(n.args) if isinstance(a, ast.arg)]
    types += [n.returns for n in own] + [getattr(n, "annotation", None) for n in inside]
    text = "".join(f"{ast.get_docstring(n) or ''}\n\n" for n in {node: 0, **dict.fromkeys(own)})
    told = dict(re.findall(r"^(\w+):\n((?: .*\n|\n)*)", text, re.M))
    listed = told.get("Args", "") + told.get("Attributes", "")
    missing = [] if ast.get_docstring(node) else ["a docstring"]
    missing += [f"a line per name: {n}" for n in re.findall(r"^ {4}(\w+,.*?):", listed, re.M)]
    if any(re.search(ARRAY, ast.unparse(t)) for t in types if t) and "See `" not in text:
        missing += [] if re.search(SHAPE, above + text) else ["a shape"]
    raised = set().union(*(errors(n, helpers) for n in own)) if "See `" not in text else set()
    known = above + told.get("Raises", "")
    return missing + [f"Raises: {name}" for name in sorted(raised) if name not in known]


def main(folder: Path) -> int:
    """Print what is lacking and the share of lines that are comments."""
    comments, rows = [], []
    for file in sorted(f for package in PACKAGES for f in (folder / package).rglob("*.py")):
        texts = [f.read_text(encoding="utf-8") for f in (file, *file.parent.glob("__init__.py"))]
        tree, *package = map(ast.parse, texts)
        above = "".join(ast.get_docstring(t) or "" for t in (tree, *package))
        comments += [line.strip().startswith("#") for line in texts[0].splitlines()]
        for top in (n for n in tree.body if not getattr(n, "name", "_").startswith("_")):
            members = [top, *(top.body if isinstance(top, ast.ClassDef) else [])]
            helpers = {n.name: n for n in [*tree.body, *members] if isinstance(n, Function)}
            for n in (n for n in members if not getattr(n, "name", "_").startswith("_")):
                rows.append((file.relative_to(folder), n, "; ".join(lacks(n, helpers, above))))
    short = [f"{f}:{n.lineno}: {n.name} lacks {missing}\n" for f, n, missing in rows if missing]
    share = f"full-line comments: {sum(comments) / len(comments):.1%} of {len(comments)} lines"
    print(*short, f"{len(short)} of {len(rows)} lack something; {share}", sep="")
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:])))
