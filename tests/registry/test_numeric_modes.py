"""float64 and bfloat16 weights on every task, and in every model; see docs/numeric_modes.md."""

import jax
import jax.numpy as jnp
import pytest

from jaxevo import registry

DOWNLOADED = {
    *("mnist", "mnist-layernorm", "permuted-mnist", "binary-mnist"),
    *("fashion-mnist", "kmnist", "cifar10", "svhn"),
}
OWN = {name: entry for name, entry in registry.TASKS.items() if name not in DOWNLOADED}
TASKS = {entry.home: name for name, entry in OWN.items()}.values()  # one of those made alike
# a model that is no task's own -> a task that it fits
MODELS = {
    "growing-rnn": "mackey-glass",
    "growing-gru": "mackey-glass",
    "growing-lstm": "mackey-glass",
    "growing-mlp": "digits",
    "growing-convnet": "digits",
    "convnet": "digits",
    "deep": "digits",
    "deep-residual": "digits",
    "lstm": "mackey-glass",
    "elman": "mackey-glass",
}


def check(task, model, mode):
    """Traces an evaluation, and the loss of a network in the dtype of the mode."""
    with jax.enable_x64(mode == "float64"):
        problem = registry.build("safe-mutation-sum", task, model=model).problem
        params = jax.eval_shape(problem.init, jax.random.key(0))
        if mode == "bfloat16":
            params = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    x.shape, jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype
                ),
                params,
            )
        floats = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype.name for x in floats} == {mode}

        def evaluate(params, problem):
            return problem.evaluate(params, problem.sample(jax.random.key(0), jnp.int32(0)))

        loss = jax.eval_shape(evaluate, params, problem).loss
        assert loss.dtype == (jnp.float64 if mode == "float64" else jnp.float32) or (
            task == "hard-maze" and loss.dtype == jnp.float32  # its simulator is float32 throughout
        )


@pytest.mark.parametrize("mode", ["float64", "bfloat16"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_networks_of_both_dtypes(task, mode):
    """Red if a scan over time or over an episode changes a dtype on the way."""
    check(task, None, mode)


@pytest.mark.parametrize("mode", ["float64", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_made_in_both_dtypes(model, mode):
    """Red if a layer of a model stays in flax's float32 where jax's floats are float64."""
    check(MODELS[model], model, mode)
