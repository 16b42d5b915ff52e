"""Which rows of a retrofit fit, choose and measure: none does two of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from latentfit.data.batch import Batch
from latentfit.diagnosis.material import Material, fit_and_validation
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.ladder import split_rows

Chose = Literal["test", "train", "halves"]

#: test rows that choose, at least (and as many that measure) and at most; the gain needs the others
FEWEST_SELECTION, MOST_SELECTION = 1_000, 5_000
#: the share of the training rows that chooses where the test rows are too few for both
SELECTION_SHARE = 0.2


@dataclass(frozen=True)
class Parts:
    """The rows of a retrofit, by what they are for.

    Attributes:
        fitted, validation: codes that priors are fitted on, and that find the defensive weight.
        selection: codes that choose. test: codes that measure the gain of what was chosen, and nothing else.
        chose: whence the selection rows are: from X_test; from X_train, on which the VAE was trained too; or, where
            one set of rows is all there is, from its second half.
        chosen_rows: the selection rows among the material's test rows; empty where they are training rows.
        measured_rows: the test codes' rows among the material's test rows.
    """

    fitted: Codes
    validation: Codes
    selection: Codes
    test: Codes
    chose: Chose
    chosen_rows: np.ndarray
    measured_rows: np.ndarray

    def measured(self, material: Material) -> Batch:
        """The rows behind `test`, as the likelihood scores them."""
        return material.scored(_picked(material.test, self.measured_rows))

    def judged(self, material: Material, choosing: bool) -> np.ndarray:
        """Numbers of the test rows that samples are compared with: where that chooses, those that may choose."""
        few = not len(self.chosen_rows)
        return np.arange(len(material.test)) if few or not choosing else self.chosen_rows


def split(material: Material, random_state: int) -> Parts:
    """Test rows choose where they are enough; else training rows do, which the VAE has seen."""
    n_test, train = len(material.codes_test), material.codes_train
    enough = n_test >= 2 * FEWEST_SELECTION
    chose: Chose = "halves" if not material.separate else "test" if enough else "train"
    if chose == "train":
        chooses, rest = split_rows(len(train), None, SELECTION_SHARE, random_state + 2)
        selection, train = train[chooses], train[rest]
        chosen, measured = np.empty(0, dtype=np.int64), np.arange(n_test)
    else:
        share = 0.5 if chose == "halves" else min(0.5, MOST_SELECTION / n_test)
        chosen, measured = split_rows(n_test, material.groups, share, random_state + 2)
        selection = material.codes_test[chosen]
    fitted, validation = fit_and_validation(train, random_state)
    test = material.codes_test[measured]
    return Parts(train[fitted], train[validation], selection, test, chose, chosen, measured)


def _picked(rows: Batch, numbers: np.ndarray) -> Batch:
    return rows[torch.as_tensor(numbers, device=rows.x.device)]
