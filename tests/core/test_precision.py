"""The precision of products: named alike everywhere, in force on devices, refused on others."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jaxevo.core.precision import computing, precision_in_force


# red where a result of a GPU is said to be float32, which jax does not take there by itself
def test_the_precision_of_products_is_the_one_in_force(monkeypatch):
    assert precision_in_force() == "float32"
    with jax.default_matmul_precision("bfloat16"):
        assert precision_in_force() == "bfloat16"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert precision_in_force() == "default of gpu"
    for name in ("float32", "tf32", "bfloat16"):
        with computing(name):
            assert precision_in_force() == name


# red where a precision is noted that the device does not compute in
@pytest.mark.parametrize(
    "platform, name, known",
    [
        ("cpu", "bfloat16", "float32"),
        ("cpu", "tf32", "float32"),
        ("tpu", "tf32", "float32, bfloat16"),
        ("gpu", "float16", "float32, tf32, bfloat16"),
    ],
)
def test_a_precision_that_a_device_does_not_know_is_refused(monkeypatch, platform, name, known):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    message = f"precision on a {platform} must be one of {known}, got '{name}'"
    with pytest.raises(ValueError, match=message):
        computing(name)


# red where a GPU rounds to TF32 in place of bfloat16, or holds sums in bfloat16
def test_a_gpu_rounds_operands_and_sums_in_float32(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    with computing("bfloat16"):
        text = export.export(jax.jit(jnp.matmul), platforms=["cuda"])(x, x).mlir_module()
    (product,) = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert "lhs_precision_type = bf16, rhs_precision_type = bf16" in product
    assert "accumulation_type = f32" in product and "-> tensor<4x4xf32>" in product
