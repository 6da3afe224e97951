"""Activated and powered gradients beside SGD and Adam, by back-propagation.

    python benchmarks/gradient_transforms.py
    python benchmarks/gradient_transforms.py --task digits --layers 4 --steps 500

Each has the learning rate that was best on keys 100 to 102 among nine; the figures are of keys 0 to
9. The network is deep, tanh and without normalisation, so that early layers have small gradients.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxevo
from jaxevo import registry

RATES = [float(rate) for rate in np.logspace(-3.5, 0.5, 9)]


def activated(learning_rate, scale=1.0, steepness=10.0):
    return optax.chain(jaxevo.activated_gradients(scale, steepness), optax.sgd(learning_rate))


def powered(learning_rate, power=0.7):
    return optax.chain(jaxevo.powered_gradients(power), optax.sgd(learning_rate))


OPTIMIZERS = {
    "sgd": jaxevo.optimizer(optax.sgd),
    "adam": jaxevo.optimizer(optax.adam),
    "a arctan(b g), a 1, b 10": jaxevo.optimizer(activated, scale=1.0, steepness=10.0),
    "a arctan(b g), a 0.1, b 1000": jaxevo.optimizer(activated, scale=0.1, steepness=1000.0),
    "sign(g) |g|^H, H 0.7": jaxevo.optimizer(powered, power=0.7),
    "sign(g) |g|^H, H 0.3": jaxevo.optimizer(powered, power=0.3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    sizes = (32,) * args.layers
    problem = registry.build("backprop", args.task, hidden_sizes=sizes).problem
    keys = jax.vmap(jax.random.key)(jnp.arange(args.seeds))
    tuning = jax.vmap(jax.random.key)(100 + jnp.arange(3))

    def losses(keys, optimizer, rates):
        """Held-out losses and accuracies, [rates, keys]."""
        learners = [
            jaxevo.GradientLearner(
                estimator=jaxevo.Backprop(), optimizer=optimizer, learning_rate=rate
            )
            for rate in rates
        ]
        settings = {"num_steps": args.steps, "record_every": args.steps}
        params = jaxevo.sweep(keys, learners, problem, **settings).params
        held_out = problem.held_out()
        batch = held_out.sample(keys[0], 0)
        found = jax.vmap(jax.vmap(lambda network: held_out.evaluate(network, batch)))(params)
        return np.asarray(found.loss), np.asarray(found.metrics["accuracy"])

    print(f"{args.task}, hidden layers {sizes}, {args.steps} steps, jax {jax.__version__}\n")
    print("| optimiser | rate | held-out loss, median [lowest, highest] | accuracy, median |")
    print("|---|---:|---|---:|")
    for name, optimizer in OPTIMIZERS.items():
        tuned = np.nan_to_num(losses(tuning, optimizer, RATES)[0], nan=np.inf)
        rate = RATES[int(np.argmin(np.median(tuned, 1)))]
        (loss,), (accuracy,) = losses(keys, optimizer, [rate])
        low, middle, high = min(loss), np.median(loss), max(loss)
        print(f"| {name} | {rate:.2g} | {middle:.3f} [{low:.3f}, {high:.3f}] | "
              f"{np.median(accuracy):.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
