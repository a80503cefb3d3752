"""ATen operators that cannot stand in a graph for a device whatever rules there are: why, and the way out."""

from __future__ import annotations

_SORTED_OUT = (
    "it packs sequences by their lengths, which differ from batch to batch",
    "run the layer over the padded sequence, and pick what counts by a mask or the lengths: "
    "y[torch.arange(len(y)), lengths - 1], or (y * mask).sum(1) / mask.sum(1)",
)
_DECOMPOSED = (
    "standard ONNX has no matrix inverses, determinants or decompositions",
    "write the layer without them, or compute the constant ones once, outside forward",
)
_RANDOM = (
    "it draws random numbers that no seed is given for",
    "draw them by nn.Dropout, or by F.dropout(x, p, self.training), and in training only",
)
_CTC = (
    "connectionist temporal classification walks over paths whose number depends on the targets' lengths",
    "train with a loss for each frame, as with aligned labels and cross_entropy",
)
_MAX_NORM = (
    "max_norm rewrites rows of the embedding while it reads them",
    "leave max_norm out, or divide the rows that were read: e / e.norm(dim=-1, keepdim=True).clamp(min=1)",
)
_FREQUENCY = (
    "scale_grad_by_freq makes an example's gradient depend on the others in its batch",
    "leave scale_grad_by_freq out",
)
_BAG_OFFSETS = (
    "bags given by offsets differ in length from batch to batch",
    "pass bags as rows [batch, length], filled up with padding_idx",
)
_UNPOOLED = (
    "it reads the positions of maxima, which graphs do not hold as torch does",
    "use ConvTranspose or Upsample instead",
)
_FOURIER = (
    "complex numbers have no place in a standard graph",
    "for a short transform multiply by its matrix: x @ cosines, x @ sines",
)

REFUSED = {
    "aten::native_dropout": _RANDOM,
    "aten::bernoulli": _RANDOM,
    "aten::bernoulli_": _RANDOM,
    "aten::_pack_padded_sequence": _SORTED_OUT,
    "aten::_ctc_loss": _CTC,
    "aten::embedding_renorm": _MAX_NORM,
    "aten::embedding_renorm_": _MAX_NORM,
    "aten::_embedding_bag": _BAG_OFFSETS,
    "aten::_embedding_bag_forward_only": _BAG_OFFSETS,
    "aten::max_unpool2d": _UNPOOLED,
    "aten::max_unpool3d": _UNPOOLED,
    "aten::view_as_complex": _FOURIER,
    "aten::_fft_r2c": _FOURIER,
    "aten::_fft_c2c": _FOURIER,
    **{
        f"aten::{name}": _DECOMPOSED
        for name in (
            "linalg_inv_ex",
            "_linalg_solve_ex",
            "_linalg_det",
            "_linalg_slogdet",
            "_linalg_svd",
            "_linalg_eigh",
            "linalg_eig",
            "linalg_qr",
            "linalg_cholesky_ex",
            "linalg_lu_factor_ex",
            "linalg_matrix_exp",
            "linalg_solve_triangular",
            "triangular_solve",
            "cholesky_inverse",
        )
    },
}
"""By the operator's name: why it is refused, and the hint."""
