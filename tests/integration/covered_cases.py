"""All that the exporter covers: the tables of `covered_*` by subject, and their cases by name."""

from __future__ import annotations

from tests.integration import covered_functions, covered_layers, covered_losses

TABLES = {
    "Activations": covered_layers.ACTIVATIONS,
    "Convolution": covered_layers.CONVOLUTIONS,
    "Pooling": covered_layers.POOLING,
    "Padding and resampling": covered_layers.RESAMPLING,
    "Normalisation": covered_layers.NORMALISATION,
    "Embedding": covered_layers.EMBEDDINGS,
    "Recurrent": covered_layers.RECURRENT,
    "Attention": covered_layers.ATTENTION,
    "Other layers and PyTorch features": covered_layers.OTHERS,
    "Losses": covered_losses.LOSSES,
    "Elementwise functions": covered_functions.ELEMENTWISE,
    "Reductions and sorting": covered_functions.REDUCTIONS,
    "Shapes": covered_functions.SHAPES,
    "Indexing": covered_functions.INDEXING,
    "Products and distances": covered_functions.PRODUCTS,
}
CASES = {name: case for cases in TABLES.values() for name, case in cases.items()}
