"""The shape of the source: imports go one way, files stay short, nothing heavy comes at import."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import latentfit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "latentfit"

#: a file imports only from those before its own
ORDER = (
    "errors",
    "registry",
    "saving",
    "data",
    "training",
    "networks",
    "flows",
    "divergences",
    "model",
    "likelihoods",
    "posteriors",
    "priors",
    "bayes",
    "penalties",
    "methods",
    "evaluation",
    "adapters",
    "diagnosis",
    "retrofitting",
    "comparison",
    "report",
    "estimator",
    "cli",
)

#: the package's face, which hands out everything, and `python -m latentfit`
FACES = ("__init__", "__main__")

#: `report()` of a result, and the card of `lf.save`, import report/ when called
LATE_REPORT = ("saving", "diagnosis", "retrofitting", "comparison")

MAX_LINES = 400

#: what `import latentfit` must not bring: it is not needed before a command, a figure or a comparison
HEAVY = ("pandas", "matplotlib", "plotly", "typer", "rich", "jinja2", "sklearn", "zuko", "joblib", "scipy")

#: third parties of a service that only loads a prior and draws from it
OF_PRIORS = ("torch", "numpy", "safetensors", "pydantic")


@dataclass(frozen=True)
class Edge:
    """An import of one of the package's folders by another."""

    file: str
    line: int
    source: str
    target: str
    in_function: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.source} -> {self.target}"

    def allowed(self) -> bool:
        if self.source in FACES or self.source == self.target:
            return True
        if self.target == "report" and self.in_function and self.source in LATE_REPORT:
            return True
        return ORDER.index(self.target) < ORDER.index(self.source)


def part(module: str) -> str:
    """latentfit.model.vae -> model; latentfit -> __init__."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def imports(tree: ast.AST, package: str, inside: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(module, line, within a function) of every import of the package, those for type checkers excepted."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(ast.Module([other], []), package, inside)
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "latentfit":
                    yield alias.name, node.lineno, inside
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*base, module]).rstrip(".")
            if module == "latentfit":
                for alias in node.names:
                    is_part = alias.name in ORDER
                    yield f"latentfit.{alias.name}" if is_part else "latentfit", node.lineno, inside
            elif module.startswith("latentfit."):
                yield module, node.lineno, inside
        within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, package, within)


def edges_of(source: str, file: Path) -> list[Edge]:
    relative = file.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    package = ".".join(("latentfit", *relative.parts[:-1]))
    found = imports(ast.parse(source), package)
    return [
        Edge(relative.as_posix(), line, own, part(module), inside)
        for module, line, inside in found
        # `from latentfit import __version__` inside a function names the face, not a folder
        if not (module == "latentfit" and inside)
    ]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_file_belongs_to_the_map() -> None:
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert names - {*ORDER, *FACES} == set()


@pytest.mark.parametrize("path", files(), ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    edges = edges_of(path.read_text(encoding="utf-8"), path)
    unknown = [str(edge) for edge in edges if edge.target not in ORDER]
    assert unknown == [] or path.stem in FACES
    assert [str(edge) for edge in edges if edge.target in ORDER and not edge.allowed()] == []


@pytest.mark.parametrize(
    ("file", "source", "law_abiding"),
    [
        ("model/vae.py", "from latentfit.data.batch import Batch", True),
        ("model/vae.py", "from latentfit.priors import create", False),
        ("model/vae.py", "def f():\n    import latentfit.priors.mixture", False),
        ("priors/vamp.py", "from latentfit.posteriors import noise", True),
        ("posteriors/iaf.py", "from latentfit import priors", False),
        ("posteriors/iaf.py", "from ..priors import mixture", False),
        ("priors/vamp.py", "from . import mixture", True),
        ("data/rows.py", "if TYPE_CHECKING:\n    from latentfit.cli import main", True),
        ("data/rows.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from latentfit.cli import main", False),
        ("comparison/result.py", "def report(self):\n    from latentfit.report import html", True),
        ("comparison/result.py", "from latentfit.report import html", False),
        ("model/vae.py", "def card():\n    from latentfit.report import card", False),
    ],
)
def test_the_import_law_itself(file: str, source: str, law_abiding: bool) -> None:
    assert all(edge.allowed() for edge in edges_of(source, PACKAGE / file)) is law_abiding


@pytest.mark.parametrize("path", files(), ids=relative)
def test_one_file_is_one_thing(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_no_pickle_is_ever_loaded() -> None:
    forbidden = re.compile(
        r"(?<!safetensors\.)\b(torch\.load|joblib\.load|pickle\.loads?|read_pickle|Unpickler)\s*\(|allow_pickle\s*=\s*True"
        r"|^\s*(import|from)\s+(c?[Pp]ickle|dill|cloudpickle|shelve|marshal)\b",
        re.MULTILINE,
    )
    hits = [
        f"{relative(path)}: {hit.group(0)}" for path in files() if (hit := forbidden.search(path.read_text("utf-8")))
    ]
    assert hits == []
    assert forbidden.search("x = np.load(f, allow_pickle=True)")  # the pattern itself can fail
    assert forbidden.search("from pickle import loads")
    assert forbidden.search("torch.load(f)")


def test_nothing_is_switched_globally() -> None:
    """No global seeds of NumPy or Python, default dtypes or devices, or logging set-up."""
    forbidden = re.compile(r"\b(logging\.basicConfig|np\.random\.seed|random\.seed|torch\.set_default_\w+)\(")
    hits = [
        f"{relative(path)}: {hit.group(0)}" for path in files() if (hit := forbidden.search(path.read_text("utf-8")))
    ]
    assert hits == []


def test_no_path_of_a_machine() -> None:
    home = re.compile(r"(?<![\w.:/])/(home|root|Users|work|mnt|opt|data)/\w|[A-Z]:\\\\?Users\b")
    kept = [*files(), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "tests").rglob("*.py")]
    kept = [path for path in [*kept, ROOT / "Makefile", ROOT / "pyproject.toml"] if path != Path(__file__)]
    hits = [f"{relative(path)}: {hit.group(0)}" for path in kept if (hit := home.search(path.read_text("utf-8")))]
    assert hits == []
    assert home.search('open("/home/me/x")')


def loaded_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_import_latentfit_is_light() -> None:
    assert loaded_after("import latentfit") & set(HEAVY) == set()


def test_a_service_that_only_draws_needs_four_packages() -> None:
    loaded = loaded_after("import latentfit.priors")
    assert loaded & set(HEAVY) == set()
    alone = loaded_after(f"import {', '.join(OF_PRIORS)}, safetensors.torch, latentfit")
    extra = {name for name in loaded - alone - set(sys.stdlib_module_names) if not name.startswith("_")}
    # torch itself imports its compiler's helpers on some paths; nothing else may come
    assert extra <= {"latentfit", "sympy", "mpmath", "networkx", "torchgen", "jinja2", "filelock", "fsspec"}


def test_import_takes_under_a_third_of_a_second_beyond_torch() -> None:
    code = "import time, torch\nstart = time.perf_counter()\nimport latentfit\nprint(time.perf_counter() - start)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def seconds() -> float:
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120, env=environment)
        return float(done.stdout)

    assert min(seconds() for _ in range(3)) < 0.3  # the least of three: other work on the machine only adds


def public_names() -> list[str]:
    return list(getattr(latentfit, "__all__", []))


def test_the_face_hands_out_what_it_names() -> None:
    names = public_names()
    assert {
        "VAE",
        "VAEModule",
        "ELBO",
        "fit",
        "compare",
        "diagnose_latents",
        "save",
        "load",
        "priors",
    } <= set(names)
    assert [name for name in names if not hasattr(latentfit, name)] == []
    assert set(names) <= set(dir(latentfit))


def described(name: str, thing: object) -> bool:
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)):
        return True  # a constant: its comment describes it
    return bool(getattr(thing, "__doc__", None))


def own_methods(thing: type) -> Iterator[tuple[str, object]]:
    for name, member in vars(thing).items():
        if name.startswith("_"):
            continue
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function):
            yield name, function


def inherited_doc(thing: type, name: str) -> bool:
    """`inspect.getdoc` finds the contract's words for a method that only implements it."""
    return bool(inspect.getdoc(getattr(thing, name)))


def test_every_public_name_is_described() -> None:
    silent = []
    for path in [package for package in PACKAGE.iterdir() if (package / "__init__.py").is_file()]:
        module = __import__(f"latentfit.{path.name}", fromlist=["__all__"])
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if not described(name, thing):
                silent.append(f"latentfit.{path.name}.{name}")
            if inspect.isclass(thing):
                silent += [
                    f"latentfit.{path.name}.{name}.{method}"
                    for method, _ in own_methods(thing)
                    if not inherited_doc(thing, method)
                ]
    silent += [f"latentfit.{name}" for name in public_names() if not described(name, getattr(latentfit, name))]
    assert silent == []


def test_every_component_is_in_the_docs() -> None:
    """A line in a table for each: `name` in backticks, in the first column."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    listed = set(re.findall(r"^\|\s*`(\w+)`", pages, re.MULTILINE))
    # in a fresh process: other tests register components of their own
    code = (
        "import importlib, pkgutil, latentfit\nfrom latentfit.methods import METHODS\n"
        "from latentfit.registry import registry\n"
        "for part in pkgutil.iter_modules(latentfit.__path__):\n"
        "    if part.ispkg: importlib.import_module(f'latentfit.{part.name}')\n"
        "print(*METHODS, *(name for family in registry._families for name in registry.names(family)))"
    )
    run = [sys.executable, "-c", code]
    wanted = set(subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout.split())
    assert {"standard", "bernoulli", "mlp", "diagonal"} <= wanted
    assert wanted - listed == set()
