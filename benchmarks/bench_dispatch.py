"""What it costs to drive a tiny generation from the host, against one scan over all of them."""

import functools
import time

import jax
import timing
from timing import SEED, Program

from jaxevo.core import Problem
from jaxevo.core.tree import tree_size
from jaxevo.estimators import EvolutionStrategy
from jaxevo.learners import GradientLearner
from jaxevo.models import mlp
from jaxevo.tasks.examples import Examples
from jaxevo.training.chunks import run_chunk, split_key, zero_sums
from jaxevo.training.loop import train

NUM_MEMBERS, NUM_INPUTS, BATCH_SIZE = 32, 15, 4  # 15 weights and a bias: 16 numbers
GENERATIONS, CHUNK = 300, 50
EAGER_GENERATIONS = 2  # unjitted, every generation traces and compiles its loops anew


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    key, key_data = jax.random.split(jax.random.key(SEED))
    inputs = jax.random.normal(key_data, (BATCH_SIZE, NUM_INPUTS), timing.dtype(args))
    problem = Problem(
        Examples(train_inputs=inputs, train_targets=inputs[:, :1]),
        mlp((NUM_INPUTS,), 1, hidden_sizes=()),
    )
    learner = GradientLearner(estimator=EvolutionStrategy(population_size=NUM_MEMBERS))
    # on the device once, as any loop would keep them
    learner, problem = jax.device_put((learner, problem))
    params = jax.tree.map(lambda leaf: leaf.astype(inputs.dtype), problem.init(key))
    settings = timing.header(args, D=tree_size(params), N=NUM_MEMBERS, B=BATCH_SIZE)
    timings = timing.measure(list(drivers(key, learner, problem, params)), args)
    rows = [
        {
            "variant": t.program.name,
            "us/generation": 1e6 * t.median,
            "x scan": timing.ratio(t, timings[0]),
        }
        | timing.memory_and_compile(t)
        for t in timings
    ]
    timing.table(rows)
    lengths = []
    for num in (10, 1000, 100_000):
        seconds = whole_scan(num, key, learner, problem, params).compile_seconds
        lengths.append({"generations of one scan": num, "compile s": seconds})
    timing.table(lengths)
    timing.write(args, [{"settings": settings, "rows": r} for r in (rows, lengths)])


def whole_scan(num_steps, key, learner, problem, params) -> Program:
    """`jaxevo.train`: init, all generations and the solution in one program."""

    def run(key, learner, problem, params):
        return train(key, learner, problem, num_steps=num_steps, params=params)

    return timing.compiled("whole scan", run, key, learner, problem, params, units=num_steps)


def drivers(key, learner, problem, params):
    yield whole_scan(GENERATIONS, key, learner, problem, params)

    key_init, key_run = split_key(key)
    first = jax.block_until_ready(jax.jit(learner.init)(key_init, problem, params))
    zeros = zero_sums(learner, problem, first)

    chunk_program = jax.jit(run_chunk, donate_argnums=(3,))
    started = time.perf_counter()
    chunk = chunk_program.lower(key_run, learner, problem, first, zeros, CHUNK).compile()
    compile_seconds = time.perf_counter() - started
    temp_bytes = getattr(chunk.memory_analysis(), "temp_size_in_bytes", None)

    def chunks(log):
        state = jax.tree.map(lambda leaf: leaf.copy(), first)  # the chunk takes it away
        for _ in range(GENERATIONS // CHUNK):
            state, sums = chunk(key_run, learner, problem, state, zeros, CHUNK)
            jax.block_until_ready(sums)
            if log:
                {name: float(total) / CHUNK for name, total in sums.items()}
        return state

    def step(key_run, learner, problem, state):
        return learner.step(jax.random.fold_in(key_run, state.step), state, problem)

    one = timing.compiled("step", step, key_run, learner, problem, first)
    jitted = jax.jit(step)

    def loop(step, log, num=GENERATIONS):
        state = first
        for _ in range(num):
            state, metrics = step(key_run, learner, problem, state)
            if log:
                float(metrics["loss"])
        return state

    for name, log in ((f"chunks of {CHUNK}", False), (f"chunks of {CHUNK} with log", True)):
        call = functools.partial(chunks, log)
        yield Program(name, call, GENERATIONS, compile_seconds, temp_bytes)
    for name, log in (("Python loop", False), ("Python loop, float(loss)", True)):
        yield one._replace(name=name, call=functools.partial(loop, jitted, log), units=GENERATIONS)
    call = functools.partial(loop, step, False, EAGER_GENERATIONS)
    yield Program("Python loop, unjitted", call, EAGER_GENERATIONS)


if __name__ == "__main__":
    main()
