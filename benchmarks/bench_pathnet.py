"""What a path's training step costs among M modules: its own gathered, against all of them masked.

Binary-MNIST sizes: 3 layers of linear modules of 20 units, paths of 3, batches of 16. `gathered`
is whole generations of PathNet (two paths, 50 batches each, gathering, putting back and the
tournament included); `masked` runs all M modules and multiplies by 0 or 1.
"""

import jax
import optax
import timing
from timing import SEED, Program

from jaxevo.core import Problem
from jaxevo.core.descent import optimizer
from jaxevo.core.tree import tree_size
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner, PathNet
from jaxevo.models import modular
from jaxevo.tasks.examples import Examples
from jaxevo.training.loop import train

NUM_MODULES = (10, 20, 40)
NUM_INPUTS, NUM_EXAMPLES, BATCH_SIZE = 784, 1000, 16
GENERATIONS, NUM_BATCHES = 4, 50


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    key, key_inputs, key_labels = jax.random.split(jax.random.key(SEED), 3)
    inputs = jax.random.uniform(key_inputs, (NUM_EXAMPLES, NUM_INPUTS), timing.dtype(args))
    task = Examples(
        train_inputs=inputs,
        train_targets=jax.random.randint(key_labels, (NUM_EXAMPLES,), 0, 2),
        loss="cross_entropy",
        batch_size=BATCH_SIZE,
        num_outputs=2,
    )
    problems = {m: Problem(task, modular((NUM_INPUTS,), 2, num_modules=m)) for m in NUM_MODULES}
    learner = PathNet(num_batches=NUM_BATCHES)
    masked = GradientLearner(
        estimator=Backprop(), optimizer=optimizer(optax.sgd), learning_rate=1e-2
    )
    generations = 1 if args.quick else GENERATIONS
    steps = generations * 2 * NUM_BATCHES
    programs = [
        *(program("gathered", m, generations, key, learner, p) for m, p in problems.items()),
        *(program("masked", m, steps, key, masked, p) for m, p in problems.items()),
    ]
    programs = [each._replace(units=steps) for each in programs]
    first = problems[NUM_MODULES[0]]
    size = tree_size(jax.eval_shape(first.init, key)["modules"])
    settings = timing.header(args, D=size, B=BATCH_SIZE, T=NUM_BATCHES)
    timings = timing.measure(programs, args)
    by_name = {t.program.name: t for t in timings}
    rows = [
        {
            "variant": name,
            "us/step": 1e6 * t.median,
            f"x gathered, M={NUM_MODULES[0]}": timing.ratio(t, timings[0]),
            "masked / gathered": timing.ratio(by_name[name.replace("gathered", "masked")], t),
        }
        | timing.memory_and_compile(t)
        for name, t in by_name.items()
    ]
    timing.table(rows)
    timing.write(args, [{"settings": settings, "rows": rows}])


def program(form, num_modules, num_steps, key, learner, problem) -> Program:
    """`num_steps` of the learner from its first state, which is made beforehand."""
    state = jax.block_until_ready(jax.jit(learner.init)(key, problem))

    def run(key, learner, problem, state):
        result = train(key, learner, problem, num_steps=num_steps, state=state)
        return result.history["loss"], result.state

    return timing.compiled(f"{form}, M={num_modules}", run, key, learner, problem, state)


if __name__ == "__main__":
    main()
