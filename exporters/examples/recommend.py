"""A recommender of the zoo: several inputs of different types, embeddings, and bags of numbers."""

from __future__ import annotations

import torch
from torch import nn


class WideAndDeep(nn.Module):
    """Wide and deep (Cheng et al. 2016): a linear model of crossed features beside a net on their embeddings.

    Scores how likely a user takes an item. Number 0 fills up what has no genre; devices know all numbers beforehand.
    """

    def __init__(self, users: int, items: int, genres: int, context: int, width: int = 16, crossed: int = 1024) -> None:
        super().__init__()
        self.crossed = crossed
        self.wide_pairs = nn.Embedding(crossed, 1)
        self.wide_context = nn.Linear(context, 1)
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        self.genres = nn.EmbeddingBag(genres, width, mode="mean", padding_idx=0)
        self.deep = nn.Sequential(
            nn.Linear(3 * width + context, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(
        self, user: torch.Tensor, item: torch.Tensor, genres: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        """[batch] users and items, [batch, n] genres, [batch, context] floats to [batch] scores (logits)."""
        # A pair's bucket: multiply by a large prime, so that neighbours meet others in theirs.
        pair = (user * 1_000_003 + item) % self.crossed
        wide = self.wide_pairs(pair) + self.wide_context(context)
        joined = torch.cat([self.users(user), self.items(item), self.genres(genres), context], dim=1)
        scores: torch.Tensor = (wide + self.deep(joined)).squeeze(1)
        return scores
