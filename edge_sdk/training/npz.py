"""Examples from a file: NumPy's .npz archives, as people bring them. Knows no store."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError
from edge_sdk.training.fields import NUMBERS

_NPZ = "give an .npz file with arrays y and x, or what the model calls its inputs, a row for each example"


def read_examples(path: Path) -> dict[str, NDArray[Any]]:
    """Read examples from an .npz file: an array for each field, the target called y, with a row for each example.

    Raises:
        ConfigError: it cannot be read, lacks y or an input, or they are not rows of finite numbers.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it holds one array without a name")
            arrays = {str(name): np.asarray(array) for name, array in loaded.items()}
    except OSError as error:
        raise ConfigError(f"cannot read examples from {path}: {error.strerror or error}", hint=_NPZ) from error
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not an .npz file of numbers", hint=_NPZ) from error
    if "y" not in arrays or len(arrays) < 2:
        raise ConfigError(f"{path} lacks an array x or y: it holds {', '.join(arrays) or 'none'}", hint=_NPZ)
    lengths = {len(rows) if rows.ndim else 0 for rows in arrays.values()}
    if len(lengths) > 1 or 0 in lengths:
        shapes = ", ".join(f"{name} of shape {rows.shape}" for name, rows in arrays.items())
        raise ConfigError(f"{path} holds {shapes}", hint=_NPZ)
    for name, rows in arrays.items():
        if rows.dtype.kind not in NUMBERS:
            raise ConfigError(f"{name} in {path} holds {rows.dtype}, not numbers", hint=_NPZ)
        if rows.dtype.kind == "f" and not np.all(np.isfinite(rows)):
            raise ConfigError(f"{name} in {path} holds NaN or infinity", hint="leave such examples out")
    return arrays
