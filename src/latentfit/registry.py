"""Names -> components, and components -> configurations.

A component's constructor signature *is* its configuration: every argument is a JSON value or another
component. `Component` records the arguments it was built with; `Registry.create` validates them against
the signature's annotations, so a misspelt argument in a file or at the command line is one clear line.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from latentfit.errors import InputError

#: the package whose import registers a family; imported when the family is first asked for
HOMES = {
    "kl_term": "latentfit.model",
    "likelihood": "latentfit.likelihoods",
    "model": "latentfit.model",
    "network": "latentfit.networks",
    "objective": "latentfit.model",
    "penalty": "latentfit.penalties",
    "posterior": "latentfit.posteriors",
    "prior": "latentfit.priors",
    "schedule": "latentfit.model",
    "transform": "latentfit.data",
    "weights": "latentfit.bayes",
}


class Component:
    """Something that is rebuilt from its name and its constructor's arguments."""

    #: set by `Registry.register`
    family: str = ""
    name: str = ""
    #: an argument whose place the component takes: a user's module given there is stored under that place's name
    stands_for: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        initialise = cls.__init__  # its own or an inherited one: either way its signature is the configuration
        signature = inspect.signature(initialise)

        @functools.wraps(initialise)
        def recording(self: Any, *args: Any, **kwargs: Any) -> None:
            if type(self) is cls:  # the outermost constructor is the configuration, not its super() calls
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                arguments = dict(bound.arguments)
                arguments.pop("self", None)
                object.__setattr__(self, "_arguments", arguments)
            initialise(self, *args, **kwargs)

        cls.__init__ = recording  # type: ignore[method-assign]  # the recording constructor has the same signature

    def config(self) -> dict[str, Any]:
        """The configuration `{"name": ..., "args": {...}}` that `registry.build` turns back into this component."""
        # a part that was exchanged after construction, such as a fitted prior, is what the component is now
        arguments = {
            key: now if isinstance(now := getattr(self, key, None), Component) else value
            for key, value in getattr(self, "_arguments", {}).items()
        }
        return {"name": self.name, "args": {key: to_json(value, key) for key, value in arguments.items()}}


class Registry:
    """The components of every family by name.

    One instance, `latentfit.registry.registry`, is filled by each family's `__init__`.
    """

    def __init__(self) -> None:
        self._families: dict[str, dict[str, type[Component]]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._synonyms: dict[str, dict[str, str]] = {}

    def register(
        self,
        family: str,
        name: str,
        component: type[Component],
        *,
        aliases: tuple[str, ...] = (),
        synonyms: tuple[str, ...] = (),
    ) -> None:
        """Make `component` known as `name`.

        `synonyms` are other words for the same thing and are accepted; `aliases` are near misses, which the error
        message answers and nothing guesses.
        """
        known = self._families.setdefault(family, {})
        if known.get(name, component) is not component:
            raise InputError(f"The {family} name {name!r} is taken by {known[name].__name__}; choose another name.")
        known[name] = component
        component.family, component.name = family, name
        self._aliases.setdefault(family, {}).update(dict.fromkeys(aliases, name))
        self._synonyms.setdefault(family, {}).update(dict.fromkeys(synonyms, name))

    def canonical(self, family: str, name: str) -> str:
        """The name that a synonym stands for; any other name as it is."""
        self._known(family)
        return self._synonyms.get(family, {}).get(name, name)

    def names(self, family: str) -> list[str]:
        """All names of a family, in the order they were registered (from simple to rich)."""
        return list(self._known(family))

    def get(self, family: str, name: str) -> type[Component]:
        """The class behind a name.

        Raises:
            InputError: an unknown name, with the nearest known one.
        """
        known = self._known(family)
        name = self.canonical(family, name)
        if name in known:
            return known[name]
        meant = self._aliases.get(family, {}).get(name)
        if meant is not None:
            raise InputError(f"Unknown {family} {name!r}: Latentfit calls it {meant!r}.")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"Unknown {family} {name!r}.{hint} Known: {', '.join(known)}.")

    def _known(self, family: str) -> dict[str, type[Component]]:
        if family in HOMES:
            importlib.import_module(HOMES[family])
        return self._families.get(family, {})

    def create(self, family: str, name: str, **arguments: Any) -> Any:
        """Build a component by name, its arguments validated against the constructor's annotations.

        Raises:
            InputError: an unknown name or argument, or a value of the wrong type.
        """
        component = self.get(family, name)
        return component(**validated(component, arguments, f"{family} {name!r}"))

    def build(self, family: str, config: str | Mapping[str, Any], externals: Mapping[str, Any] | None = None) -> Any:
        """The component of a configuration: a name, `{"name", "args"}`, or `{"external": NAME}` of `externals`."""
        if isinstance(config, str):
            return self.create(family, config)
        if "external" in config:
            return _external(config["external"], externals)
        unknown = set(config) - {"name", "args"}
        if "name" not in config or unknown:
            raise InputError(f"A {family} configuration needs 'name' and 'args', got {sorted(config)}.")
        arguments = {key: self.from_json(value, externals) for key, value in dict(config.get("args") or {}).items()}
        return self.create(family, config["name"], **arguments)

    def from_json(self, value: Any, externals: Mapping[str, Any] | None = None) -> Any:
        """JSON -> argument: a nested component `{"family", "name", "args"}`, a user's module `{"external": NAME}`."""
        if isinstance(value, Mapping):
            if "external" in value:
                return _external(value["external"], externals)
            if "family" in value:
                return self.build(value["family"], {k: value[k] for k in ("name", "args") if k in value}, externals)
            return {key: self.from_json(item, externals) for key, item in value.items()}
        if isinstance(value, list):
            return [self.from_json(item, externals) for item in value]
        return value


def _external(name: str, externals: Mapping[str, Any] | None) -> Any:
    if externals is None or name not in externals:
        raise InputError(
            f"This file holds your own {name!r}, which is not stored in it: load(..., {name}=your_module)."
        )
    return externals[name]


def to_json(value: Any, key: str) -> Any:
    """An argument as JSON; what is neither JSON nor a component becomes `{"external": key}`."""
    if isinstance(value, Component) and value.name:
        config = value.config()
        if config["args"].get(value.stands_for) == {"external": value.stands_for}:
            config["args"][value.stands_for] = {"external": key}
        return {"family": value.family, **config}
    if isinstance(value, Mapping):
        return {str(name): to_json(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, key) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"external": key}


def validated(component: type[Any], arguments: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Arguments checked and converted by the constructor's annotations (pydantic)."""
    from pydantic import ConfigDict, ValidationError, create_model

    initialise = vars(component).get("__init__") or getattr(component, "__init__")  # noqa: B009  (mypy)
    signature = inspect.signature(initialise)
    hints = _type_hints(initialise)
    fields: dict[str, Any] = {}
    for key, parameter in signature.parameters.items():
        if key == "self" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[key] = (hints.get(key, Any), default)
    model = create_model(
        component.__name__, __config__=ConfigDict(arbitrary_types_allowed=True, extra="forbid"), **fields
    )
    try:
        checked = model(**arguments)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{what} takes no argument {key!r}. It takes: {', '.join(fields)}.") from None
        if first["type"] == "missing":
            raise InputError(f"{what} needs the argument {key!r}.") from None
        raise InputError(f"{what}: {key} = {first['input']!r} is not usable: {first['msg'].lower()}.") from None
    return {key: getattr(checked, key) for key in arguments}


def _type_hints(function: Any) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(function)


registry = Registry()
