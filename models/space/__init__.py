"""One space for names, pictures and sounds: what belongs to one thing lies near each other, to search by.

`space` has the towers and their folder on disk, `states` lets an imported model read names, `text_encoders` has those
readers that are no backbone, `encoders` an eye and an ear that others trained, `contrast` the loss against a public
gallery and recall, `training` trains on public things, `public` reads a table of them and builds a space. `embedding`
gives the points of names and files. A space is public: no record has taught it.

Of three things two are found first by their own point; the last one lies nearer to the first:

>>> import torch
>>> from confide.models.space import contrast
>>> names = torch.eye(3)
>>> pictures = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.8, 0.0, 0.6]])
>>> contrast.ranks(pictures @ names.T, torch.arange(3)).tolist()
[1, 1, 2]
"""

__all__ = ["contrast", "embedding", "encoders", "public", "space", "states", "text_encoders", "training"]
