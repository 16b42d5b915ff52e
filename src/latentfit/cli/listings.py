"""`latentfit diagnose`, and the lists: methods, datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from latentfit.cli.options import AsJson, Lang, Seed, check_lang
from latentfit.cli.program import app
from latentfit.errors import InputError


@app.command()
def diagnose(
    context: typer.Context,
    latents: Annotated[
        Path,
        typer.Option(
            help="FILE.npz: mean and one of std, var, logvar; train_mean and its spread, where there are",
            show_default=False,
        ),
    ],
    depth: Annotated[str, typer.Option(help="full, or quick: without the flow")] = "full",
    seed: Seed = 0,
    lang: Lang = "en",
    as_json: AsJson = False,
) -> None:
    """What N(0, I) costs, at least, from the codes of any VAE."""
    check_lang(lang)
    arrays = _latents(latents)
    from latentfit.diagnosis.catalogue import plain
    from latentfit.diagnosis.latents import diagnose_latents

    dx = diagnose_latents(**arrays, depth=depth, random_state=seed, lang=lang)  # type: ignore[arg-type]  # checked there
    if as_json:
        print(json.dumps(dx.to_dict(), indent=1))
    else:
        print(plain(str(dx)) if context.obj.ascii else str(dx))


@app.command("methods")
def list_methods(context: typer.Context, lang: Lang = "en", as_json: AsJson = False) -> None:
    """The methods there are."""
    check_lang(lang)
    from latentfit.diagnosis.catalogue import plain, say
    from latentfit.methods import METHODS

    listed = [
        {
            "name": method.name,
            "family": method.family,
            "prior": method.prior,
            "posterior": method.posterior,
            "joint": method.joint,
            "post_hoc": method.post_hoc,
            "description": say(f"method.{method.name}", lang),
        }
        for method in METHODS.values()
    ]
    if as_json:
        print(json.dumps(listed, indent=1, ensure_ascii=context.obj.ascii))
        return
    width = max(len(str(method["name"])) for method in listed)
    words = (say("word.jointly", lang), say("word.post hoc", lang))
    for method in listed:
        how = ", ".join(word for word, can in zip(words, (method["joint"], method["post_hoc"]), strict=True) if can)
        line = f"{method['name']:<{width}}  {how:<{len(', '.join(words))}}  {method['description']}"
        print(plain(line) if context.obj.ascii else line)


@app.command("datasets")
def list_datasets(as_json: AsJson = False) -> None:
    """The data known by name, with the checksums of their files."""
    from latentfit.data.sources import FORMATS, datasets

    known = datasets()
    if as_json:
        print(json.dumps(known, indent=1))
        return
    for entry in known:
        shape = "x".join(map(str, entry["shape"]))
        print(f"{entry['name']:<15}{entry['rows']:>6,} images {shape:<7}{entry['title']}")
        for file, checksum in entry["files"].items():
            print(f"    {file}\n        sha256 of the content {checksum}")
    print(f"Files: {FORMATS}.")


def _latents(path: Path) -> dict[str, Any]:
    """The arguments of `diagnose_latents` that an .npz file holds."""
    import numpy as np

    if not path.is_file():
        raise InputError(f"--latents {path} does not exist.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy raises whatever the damage suggests
        raise InputError(
            f"--latents {path} is not a complete .npz file of numbers; write it with numpy.savez."
        ) from error
    spreads = [name for name in ("std", "var", "logvar") if name in arrays]
    if "mean" not in arrays or len(spreads) != 1:
        held = ", ".join(arrays) or "nothing"
        raise InputError(f"--latents {path} needs the keys mean and exactly one of std, var, logvar; it holds {held}.")
    kind = spreads[0]
    result: dict[str, Any] = {"mean": arrays["mean"], kind: arrays[kind]}
    if "train_mean" in arrays:
        if f"train_{kind}" not in arrays:
            raise InputError(f"--latents {path} holds train_mean, so it needs train_{kind} too (the kind of {kind}).")
        result["train"] = (arrays["train_mean"], arrays[f"train_{kind}"])
    if "groups" in arrays:
        result["groups"] = arrays["groups"]
    return result
