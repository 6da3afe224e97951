"""The precision in which networks are computed: that of the operands of their products.

Sums are held in float32 at least, and parameters keep their own dtype, whatever the precision.
"""

import contextlib
from typing import Literal

import jax

from jaxevo.core.pytrees import require_choice
from jaxevo.core.sizes import platform

Precision = Literal["float32", "tf32", "bfloat16"]

# jax's names for `jax.default_matmul_precision`, by platform. jax's own "bfloat16" leaves TF32 on a
# GPU; the algorithm rounds the operands. A CPU knows float32 alone, and ignores other names.
NAMES = {
    "cpu": {"float32": None},
    "gpu": {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "BF16_BF16_F32"},
    "tpu": {"float32": "float32", "bfloat16": "bfloat16"},
}


def precision_in_force() -> str:
    """The precision of matrix products, as `jax.default_matmul_precision` has it.

    Where nobody has set it a CPU takes float32; other devices take what is quickest there.
    """
    wanted = jax.config.values.get("jax_default_matmul_precision")
    if wanted is None:
        return "float32" if platform() == "cpu" else f"default of {platform()}"
    ours = {name: own for own, name in NAMES.get(platform(), {}).items()}
    return ours.get(wanted, str(wanted))


def computing(precision: Precision | None) -> contextlib.AbstractContextManager:
    """Inside, products of networks are computed in this precision; None changes nothing.

    A network's own `precision` argument goes before it. On a GPU convolutions know no bfloat16
    beside parameters of float32: there they take TF32.

    Raises:
        ValueError: the platform computes in no such precision; the message names those it knows.
    """
    if precision is None:
        return contextlib.nullcontext()
    names = NAMES.get(platform(), NAMES["gpu"])
    require_choice(f"precision on a {platform()}", names, precision)
    name = names[precision]
    return contextlib.nullcontext() if name is None else jax.default_matmul_precision(name)
