"""PPO: Schulman et al. 2017 (arXiv 1707.06347), with the details of Ziegler et al. 2019 and Huang et al. 2022, 2024.

Three policies, one core (``ppo_core``): Gymnasium tasks (``ppo_vector``), heads on a frozen language model
(``ppo_heads``), and a whole language model (``ppo_language``).  Numbered details:
 1. the sampling temperature divides the logits in old and new log-probs alike; no top-k, no top-p;
 2. log-probs and values are kept from the sampling pass, so the first minibatch's ratio is 1; in bfloat16, where
    sampler and trainer differ, the log-probs are taken anew and the mismatch is logged;
 3. there is no dropout;
 4. a reply ends at its EOS, which is an action; nothing after it is scored;
 5. the score stands once, at the last token; −β(log π − log π_ref) stands on every token (or k2, k3 in the loss);
 6. β is fixed or steered to a target (Ziegler et al. 2019, section 2.2) and is part of the saved state;
 7. a reply without EOS gets ``reward.missing_eos_penalty`` instead of its score;
 8. GAE runs over valid tokens only, γ = 1 and λ = 0.95 being usual for language;
 9. advantages are whitened once over the rollout's valid tokens (Huang et al. 2022 whiten each minibatch);
10. value loss 0.5·max of clipped and unclipped; the value head starts at zero, or from the reward model;
11. Adam's ε is 1e-5; gradients are clipped at norm 0.5.
"""

from __future__ import annotations

from accord.algorithms import ppo_control as ppo_vector
from accord.algorithms import ppo_heads, ppo_language
from accord.config.on_policy import HeadsPPOConfig, LanguagePPOConfig
from accord.config.ppo import PPOConfig
from accord.runtime.run import Run


def train(config: PPOConfig, run: Run) -> dict[str, float]:
    """Trains the policy that ``model.policy`` names; returns the last rollout's numbers."""
    if isinstance(config, LanguagePPOConfig):
        return ppo_language.train(config, run)
    if isinstance(config, HeadsPPOConfig):
        return ppo_heads.train(config, run)
    return ppo_vector.train(config, run)
