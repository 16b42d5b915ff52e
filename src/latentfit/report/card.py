"""The README.md beside a saved model: what it is, how to load and sample it, what its numbers mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from latentfit.evaluation.estimate import Estimate

_LOAD = {
    "prior": 'import latentfit as lf\n\nprior = lf.priors.load("{path}")\nz = prior.sample(64)',
    "vae": 'import latentfit as lf\n\nvae = lf.load("{path}")\nx = vae.sample(64)',
}
#: facts -> their words in the table, in this order; every other fact is left out
_NUMBERS = {
    "log_px": "log p(x), nats per row",
    "gain": "gain on N(0, I), nats per row",
    "prior_gap": "prior gap, nats per row, at least",
    "inference_gap": "inference gap, nats per row",
    "kl": "KL, nats per row",
    "active_units": "active units",
    "n_parameters": "parameters",
}
_ORIGIN = {
    "data": "Data",
    "fingerprint": "Data fingerprint",
    "likelihood": "Likelihood",
    "base_measure": "Base measure",
    "latent_dim": "Latent units",
    "n_rows": "Training rows",
    "seed": "Seed",
    "command": "Made by",
    "versions": "Versions",
}
#: what a reader must know before passing a component on, by the name of a part
_NOTES = {
    "exemplar": "The prior `exemplar` holds the codes of training rows: decoding one gives that row's reconstruction.",
    "vamp": "The prior `vamp` holds pseudo-inputs that started as training rows and may still look like them.",
}


def card(component_config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The README of a saved component, as Markdown.

    Args:
        component_config: `Component.config()`: {"name", "args"}, with "family" where it is known.
        facts: what is known of it, all optional: `kind` ("vae" or "prior"), `path`, `data`, `fingerprint`,
            `likelihood`, `base_measure`, `latent_dim`, `n_rows`, `seed`, `command`, `versions` (a dict), and
            the numbers `log_px`, `gain`, `prior_gap`, `inference_gap` (an Estimate, its `to_dict()`, or a
            float), `kl`, `active_units`, `n_parameters`.

    Returns:
        Markdown; a fact that is missing has no line.

    >>> gain = Estimate(1.62, 0.2, (1.2, 2.0))
    >>> text = card({"name": "mixture", "args": {}}, {"kind": "prior", "gain": gain})
    >>> text.splitlines()[0], "1.6 ± 0.2" in text
    ('# mixture', True)
    """
    name = _title(component_config)
    kind = str(facts.get("kind") or ("prior" if component_config.get("family") == "prior" else "vae"))
    what = "prior of a variational autoencoder" if kind == "prior" else "variational autoencoder"
    on = f", fitted on {_inline(facts['data'])}" if facts.get("data") else ""
    path = str(facts.get("path") or ".").replace("\\", "/").replace('"', "")
    parts = [f"# {_inline(name)}", f"A {what} saved by Latentfit{on}."]
    parts.append("```python\n" + _LOAD.get(kind, _LOAD["vae"]).format(path=path) + "\n```")
    numbers = [(word, _number(facts[key])) for key, word in _NUMBERS.items() if facts.get(key) is not None]
    if numbers:
        parts.append("\n".join(["| number | value |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in numbers)]))
        parts.append(
            "± is one standard error. Numbers of log p(x) compare only within one base measure"
            + (f": {_inline(facts['base_measure'])}." if facts.get("base_measure") else ".")
        )
    origin = [f"- {word}: {_origin(facts[key])}" for key, word in _ORIGIN.items() if facts.get(key) is not None]
    if origin:
        parts.append("## Where it comes from\n\n" + "\n".join(origin))
    notes = [note for part, note in _NOTES.items() if part in _parts(component_config)]
    if notes:
        parts.append("## Privacy\n\n" + "\n".join(notes))
    fence = json.dumps(dict(component_config), indent=2, ensure_ascii=False, default=str).replace("```", "'''")
    parts.append(f"## Configuration\n\n```json\n{fence}\n```")
    parts.append("The weights are in `model.safetensors`; nothing in this folder is executed when it is loaded.")
    return "\n\n".join(parts) + "\n"


def _title(config: Mapping[str, Any]) -> str:
    """The component's name; of a defensive mixture that of the fitted prior in it."""
    name, base = str(config.get("name", "model")), config.get("args", {}).get("base")
    return f"{base['name']} (defensive)" if name == "defensive" and isinstance(base, Mapping) else name


def _parts(config: Any) -> set[str]:
    """Names of a component and of all that it is made of."""
    if isinstance(config, Mapping):
        own = {str(config["name"])} if "name" in config else set()
        return own.union(*(_parts(value) for value in config.values()))
    if isinstance(config, list | tuple):
        return set().union(*(_parts(value) for value in config))
    return set()


def _number(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(Estimate.from_dict(dict(value)))
    if isinstance(value, bool | str):
        return _inline(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _origin(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_inline(key)} {_inline(item)}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) else _inline(value)


def _inline(value: Any) -> str:
    # a name of a file or column must not open a tag, a table cell or a link in the reader's Markdown
    text = " ".join(str(value).split())
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("[", "\\["), ("](", "]\\(")):
        text = text.replace(mark, safe)
    return text
