"""What was understood of a foreign model: codes and evidence, said in every language when they are shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import latentfit.adapters
from latentfit.adapters import Understood, adapt
from latentfit.adapters.understood import LABEL, LANGUAGES
from latentfit.errors import InputError

KEYS = [key.removeprefix("adapted.") for key in LANGUAGES["en"]]
#: English words that no Vietnamese sentence holds
ENGLISH = {"the", "mean", "read", "given", "data", "explains", "example", "sigma differs", "adapted", "as you say"}


class Tutorial(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.to_z, self.to_x, self.scale = nn.Linear(6, 4), nn.Linear(2, 6), scale

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.to_z(x).chunk(2, dim=1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.scale * self.to_x(z)


def rows() -> torch.Tensor:
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(0))


ADAPTED = {
    "normal": {"likelihood": "normal", "kl_weight": 1e-3, "reconstruction": "mse_mean"},
    "bernoulli": {"likelihood": "bernoulli", "example": (rows() > 0).float()},
    "grey": {"likelihood": "bernoulli", "example": rows().sigmoid()},
    "codes": {},
}


def adapted(**options):
    torch.manual_seed(0)
    return adapt(Tutorial(), **{"example": rows(), **options})


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"\S+=\S+|\w+\(\w+\)|\(.*?restored.*?\)", "", text.lower())))


@pytest.mark.parametrize("options", ADAPTED.values(), ids=ADAPTED)
def test_every_line_is_said_in_vietnamese_with_the_same_evidence(options: dict) -> None:
    model = adapted(**options)
    english, vietnamese = ([part.sentence(lang) for part in model.understood] for lang in ("en", "vi"))
    assert len(english) == len(vietnamese) > 3
    for ours, theirs in zip(english, vietnamese, strict=True):
        assert re.findall(r"\d+", ours) == re.findall(r"\d+", theirs)
        assert ours != theirs
        assert not words(theirs) & ENGLISH
    assert model.summary() == str(model)
    assert model.summary("vi").splitlines()[0].startswith("Đã tiếp nhận Tutorial trên cpu")
    assert max(map(len, model.summary("vi").splitlines())) <= 80


def test_an_encoder_that_gives_its_spread_first_is_asked_about_in_both() -> None:
    identity = adapt(
        encode=lambda x: (-x, x), decode=lambda z: z, example=rows(), spread="logvar",
        likelihood="normal",
    )  # fmt: skip
    asked = identity.understood[-1]
    assert asked.code == "trip.swapped"
    assert "decode(spread) explains 100 %: does encode(x) give the spread first?" in asked.text()
    assert "encode(x) trả độ rộng trước?" in asked.text("vi")


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(InputError, match="Unknown language 'fr'; Latentfit speaks: en, vi"):
        adapted().summary("fr")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_labels_fit_their_column(lang: str) -> None:
    labels = {key: text for key, text in LANGUAGES[lang].items() if key.endswith(".label")}
    assert labels
    assert [text for text in labels.values() if len(text) > LABEL] == []


def test_every_code_has_a_sentence_and_every_sentence_a_code() -> None:
    """Codes that are put together ("loss.beta" + ".sigma" * known, f"read.{why}") by their first part."""
    folder = Path(latentfit.adapters.__file__).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py") if "sentences" not in path.name)
    whole = set(re.findall(r"(?:Understood|_say)\(\s*\"([\w.]+)\"\s*[,)]", source))
    assert len(whole) > 20
    assert whole - set(KEYS) == set()
    parts = {text for text in re.findall(r"\"([\w.]+)", source) if len(text) > 3}
    sentences = [key for key in KEYS if not key.endswith(".label")]
    unsaid = [
        key for key in sentences if not any(key == part or key.startswith(part.rstrip(".") + ".") for part in parts)
    ]
    assert unsaid == []


def test_evidence_may_be_what_was_understood_itself() -> None:
    given = (Understood("given.library"), Understood("given.batches", {"n": 2}))
    cells = Understood("decode.cells", {"likelihood": "zinb", "dispersion": "gene", "given": given})
    assert cells.lines() == [" decode(z)  -> zinb, dispersion gene; given: library size, 2 batches"]
    assert cells.text("vi").endswith("cho trước: cỡ thư viện, 2 lô")
