"""Peak learning rates by the kind of stage and the size of the model, where a config leaves them to accord.

All of them are for AdamW on all weights.  Sources, by the least number of parameters of a row of ``RATES``:

* below 20 million (the small models of the small world): each stage's own, ``usual_rate`` of its settings;
* 20 million: those of ``configs/recipes/smollm2.yaml``, measured here on 135 million;
* 1 billion: SFT, reward model and PPO of Llama 2 (Touvron et al. 2023, 7B and 13B; SFT of Zephyr, Tunstall et al. 2023, is
  the same), DPO of Zephyr 7B and of Tulu 3 8B (Lambert et al. 2024);
* 30 billion: reward model and PPO of Llama 2 70B, SFT and DPO of Tulu 3 70B.

A value head and a scalar head are new: the critic learns at the rate of a reward model of its size, the head of a reward
model at ten times its rate, as in the recipe.
"""

from __future__ import annotations

SMALL = 20_000_000
"""Parameters below which a model is one of the small world's kind."""
UNKNOWN = 1_000_000_000
"""Parameters that a model is taken to have where they cannot be counted."""
RATES = {
    SMALL: {"sft": 3e-5, "reward": 2e-5, "dpo": 1.5e-5, "ppo": 3e-5},
    1_000_000_000: {"sft": 2e-5, "reward": 1e-5, "dpo": 5e-7, "ppo": 1e-6},
    30_000_000_000: {"sft": 2e-6, "reward": 5e-6, "dpo": 2e-7, "ppo": 1e-6},
}
HEAD = 10
"""Of the rate of a reward model, that of its scalar head."""


def suited_rate(kind: str, parameters: int) -> float | None:
    """The peak learning rate of a stage kind for a model of so many parameters; None for a small one, or another kind."""
    fitting = [rates for least, rates in RATES.items() if parameters >= least]
    return fitting[-1].get(kind) if fitting else None
