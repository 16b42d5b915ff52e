"""What an adapter understood of a foreign model: a code and its evidence, said in a language when it is shown."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any

from latentfit.adapters.sentences_en import SENTENCES as ENGLISH
from latentfit.adapters.sentences_vi import SENTENCES as VIETNAMESE
from latentfit.errors import InputError

#: `latentfit.diagnosis.catalogue` holds them beside all others
LANGUAGES = {"en": ENGLISH, "vi": VIETNAMESE}
#: of a printed line, and of the label it begins with; what is longer goes on below its text
WIDTH, LABEL = 79, 10


@dataclass(frozen=True)
class Understood:
    """One thing that was understood.

    Attributes:
        code: "encode.mean_spread"; its first word is the label of a printed line.
        evidence: what the sentence is filled with: numbers, names, or more that was understood, alone or in a tuple.
    """

    code: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def text(self, lang: str = "en") -> str:
        """The sentence without its label.

        >>> Understood("decode.none").text()
        'none given: no samples, no numbers about p(x given z)'

        Raises:
            InputError: an unknown language.
        """
        if lang not in LANGUAGES:
            raise InputError(f"Unknown language {lang!r}; Latentfit speaks: {', '.join(LANGUAGES)}.")
        said = {key: _said(value, lang) for key, value in self.evidence.items()}
        return LANGUAGES[lang][f"adapted.{self.code}"].format(**said)

    def sentence(self, lang: str = "en") -> str:
        """The sentence with its label, in one piece."""
        text, label = self.text(lang), self.label(lang)
        return f"{label} {text}" if label else text

    def lines(self, lang: str = "en") -> list[str]:
        """The same as `print` shows it: a column of labels; a head has none."""
        text, label = self.text(lang), self.label(lang)
        head = f" {label:{LABEL}} " if label else ""
        return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * (LABEL + 2))

    def label(self, lang: str = "en") -> str:
        """What the sentence is about, in a word: "encode(x)", "loss"; "" of a head."""
        return LANGUAGES[lang].get(f"adapted.{self.code.partition('.')[0]}.label", "")

    def __str__(self) -> str:
        return self.sentence()


def _said(value: Any, lang: str) -> Any:
    if isinstance(value, Understood):
        return value.text(lang)
    if isinstance(value, tuple) and value and all(isinstance(part, Understood) for part in value):
        return ", ".join(part.text(lang) for part in value)
    return value
