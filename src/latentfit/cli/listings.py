"""The lists: methods, datasets."""

from __future__ import annotations

import json
import sys
import textwrap

import typer

from latentfit.cli.options import AsJson, Lang
from latentfit.cli.program import app, screen


@app.command("methods")
def list_methods(context: typer.Context, lang: Lang = "en", as_json: AsJson = False) -> None:
    """The methods there are."""
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
    name_width = max(len(str(method["name"])) for method in listed)
    words = (say("word.jointly", lang), say("word.post hoc", lang))
    first, width = name_width + 2 + len(", ".join(words)) + 2, screen(sys.stdout)["width"]
    narrow = width < 2 * first  # what it is then goes below its name
    indent = " " * (4 if narrow else first)
    for method in listed:
        how = ", ".join(word for word, can in zip(words, (method["joint"], method["post_hoc"]), strict=True) if can)
        start = f"{method['name']:<{name_width}}  {how}"
        lines = textwrap.wrap(str(method["description"]), width, initial_indent=indent, subsequent_indent=indent)
        lines = [start, *lines] if narrow else [start + lines[0][len(start) :], *lines[1:]]
        for line in lines:
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
