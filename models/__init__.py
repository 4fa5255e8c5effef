"""Frozen backbones and what is trained beside them: adapters, heads, records and metrics.

Knows no site and no privacy. `backbones` builds and reads a frozen model, `adapters.attach` puts LoRA into it, `heads`
turns its states into a loss, `records` turns cells into its inputs, and `evaluation` says how good it is. `structure`
tells a model where a token stands and what is in a picture or a sound, `decoding` lets it write, `compression` makes a
backbone smaller. `serving` answers requests, `deployment` writes a model that runs where nothing of this is installed,
`charts` reads the values of charts, and `space` puts names, pictures and sounds where each can be found by another.
`tokens` says what rows of tokens are.

LoRA of rank 2 on the four experts of one layer is 512 numbers to train; the model itself stays frozen:

>>> from transformers import MixtralConfig, MixtralForCausalLM
>>> from confide.models.adapters import AdapterConfig, attach
>>> sizes = dict(hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
>>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4))
>>> adapted = attach(model, AdapterConfig(rank=2, alpha=4.0, targets=("experts",), seed="public"))
>>> adapted.state().shape, model.lm_head.weight.requires_grad
((512,), False)
"""

__all__ = [
    "adapters", "backbones", "charts", "compression", "decoding", "deployment", "evaluation", "heads", "records",
    "serving", "space", "structure",
]  # fmt: skip

if "." not in __name__:
    raise ImportError("this folder is the package confide.models: write `import confide.models`, not `import models`")
