"""Named post hoc methods join the ladder of a comparison; those that only exist post hoc are not trained."""

from __future__ import annotations

import numpy as np
import pytest

from latentfit import VAE, methods
from latentfit.comparison.plan import Options, make_plan
from latentfit.data.prepared import prepare_rows
from latentfit.data.splits import split_rows
from latentfit.errors import CapabilityError


def plan(names):
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    data = prepare_rows(x, np.arange(60), random_state=0)
    return make_plan(Options(methods=names, n_seeds=1, max_steps=20), data, split_rows(60), "data")


def test_named_post_hoc_methods_are_rungs():
    asked = plan("two_stage,flow_matching")
    assert asked.methods == ["standard", "two_stage"]
    assert asked.rungs == [*methods.LADDER, "two_stage", "flow_matching"]
    assert asked.ladders[0].settings["rungs"] == ["two_stage", "flow_matching"]
    usual = plan("standard")
    assert usual.rungs == list(methods.LADDER)
    assert usual.null[0].key == asked.null[0].key  # the N(0, I) model is not trained again for them
    assert usual.ladders[0].key != asked.ladders[0].key


def test_what_is_only_fitted_post_hoc_is_not_trained():
    with pytest.raises(CapabilityError, match=r'retrofit\(vae, X, priors=\["flow_matching"\]\)'):
        VAE(latent_dim=2, method="flow_matching", max_steps=5).fit(np.random.default_rng(0).normal(size=(50, 3)))
