"""LoRA adapters: attached to a backbone, exported, imported, merged and combined.

`attach` freezes a model and puts factors beside its target modules; the `AdaptedModel` gives and takes what is trained
as one vector. `export` writes an adapter in PEFT's format with a `ModelCard`, `merging` adds it into the weights,
`combining` makes one adapter of several, `carrying` one for a smaller backbone, and `composing` chooses among several
for each request. `lora` is the place to
read.

B starts at zero, so an adapted model computes what its backbone did until another state is put in:

>>> import numpy as np
>>> import torch
>>> from transformers import LlamaConfig, LlamaForCausalLM
>>> from confide.models.adapters import AdapterConfig, attach
>>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
>>> model, ids = LlamaForCausalLM(LlamaConfig(**sizes)), torch.tensor([[2, 5, 1]])
>>> before = model(ids).logits
>>> adapted = attach(model, AdapterConfig(rank=2, alpha=4.0, targets=("q_proj", "o_proj"), seed="public"))
>>> bool((adapted.model(ids).logits == before).all())
True
>>> adapted.load_state(np.ones_like(adapted.state()))
>>> bool((adapted.model(ids).logits == before).all())
False
"""

from .card import ModelCard
from .factors import AdapterConfig
from .lora import AdaptedModel, attach
from .peft_export import export

__all__ = [
    "AdaptedModel", "AdapterConfig", "ModelCard", "attach", "carrying", "combining", "composing", "export", "merging",
    "prototype",
]  # fmt: skip
