"""The compiled pieces of one run, and the state that they advance.

All that a run does again and again is compiled once, before the first step. There are two such
programs: a chunk of any number of steps, and what a record holds. They are compiled side by side
with the one that makes the first networks. Runs of the same structure share compiled programs.
"""

import collections
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxevo.core import FitsCheckpoints, Params, Problem, Resized, Resizes
from jaxevo.core.population import chunk_floats
from jaxevo.core.sizes import check_fits, platform
from jaxevo.core.spreading import on_devices, over_runs
from jaxevo.core.tree import tree_finite, tree_where
from jaxevo.core.words import COUNTS
from jaxevo.training.chunks import (
    FINITE,
    run_chunk,
    run_chunk_skipping,
    split_key,
    with_step,
    zero_sums,
)
from jaxevo.training.devices import laid_out, layouts, mesh_of_arrays, placed, replicated
from jaxevo.training.loop import warn_of_retrace

OF_RECORDS = {"step", "seconds"}  # what a record holds beside metrics


class Record(NamedTuple):
    """What a record holds, on the host.

    Attributes:
        metrics: means since the last record, of counts the last, by name.
        share: the share of these steps whose loss was finite, for each seed.
        sound: whether the solution is finite, for each seed.
        held_out: metrics of the solution on the test split, by name; {} without one.
    """

    metrics: dict[str, Any]
    share: Any
    sound: np.ndarray
    held_out: dict[str, Any]


class Program:
    """One learner on one problem, over all seeds: state, sums of metrics, best network so far.

    With a mesh everything is on its devices. The first program chooses how a state is laid out,
    and all others keep to that.
    """

    def __init__(self, key, learner, problem, num_seeds, params, *, skip=False, mesh=None):
        self.mesh = mesh
        # a user's own mesh has all arrays, too, but members are not spread over it
        self.home = mesh_of_arrays((learner, problem, params)) if mesh is None else mesh
        mesh = self.home
        key, learner, problem, params = placed(mesh, (key, learner, problem, params))
        self.run_chunk = run_chunk_skipping if skip else run_chunk
        self.skip = skip
        self.learner, self.problem = learner, problem
        self.many, self.num_seeds = num_seeds is not None, num_seeds
        self.compile_seconds, self.compiles = 0.0, 0
        self.sizes = 0  # sizes of the network until now; the step is compiled for each of them
        keys = key if num_seeds is None else jax.random.split(key, num_seeds)
        axis = 0 if params is not None and _one_for_each(params, problem, num_seeds) else None
        axes = (0, None, None, axis)
        self.whole = whole = None if mesh is None else replicated(mesh)
        self.known: tuple[Any, Any] = None, None  # a state, and whether its solution is finite
        self.can_resize = isinstance(learner, Resizes)
        self.test = placed(mesh, problem.held_out())
        arguments, out = (keys, learner, problem, params), (whole, None, whole, whole)
        first = self._begun(_first, axes, arguments, out=out)
        if mesh is None:  # else the first program chooses the layouts that the others keep to
            self._begin(*first.shapes)
        self.key_run, self.state, self.sums, self.best = self._finished(first)(*arguments)
        self._compile()

    def _begin(self, key_run: Any, state: Any, sums: Any, best: Any) -> tuple[Any, Any]:
        """Begins the programs of a chunk and of a record, whose arguments may be abstract."""
        arguments = (key_run, self.learner, self.problem, state, sums, np.int32(1))
        donate = () if self.can_resize else (3, 4)
        self.out = layouts(state), layouts(sums)
        axes = (0, None, None, 0, 0, None)
        chunk = self._begun(self.run_chunk, axes, arguments, donate, self.out)
        arguments = (self.learner, self.problem, self.test, state, best)
        axes, out = (None, None, None, 0, 0), (self.whole, layouts(best))
        return chunk, self._begun(_recorded, axes, arguments, out=out)

    def _compile(self) -> None:
        """Compiles the programs of a chunk and of a record."""
        self.zeros = jax.tree.map(jnp.zeros_like, self.sums)
        self.sizes += 1
        chunk, recorder = self._begin(self.key_run, self.state, self.sums, self.best)
        self.chunk, self.recorder = self._finished(chunk), self._finished(recorder)
        self.temp_bytes = getattr(self.chunk.memory_analysis(), "temp_size_in_bytes", None)

    def advance(self, num_steps: int) -> tuple[float, int]:
        """Takes a chunk of steps. Returns its seconds and the number of steps that were done.

        Where a step overflows the network's slots, the steps before it are done and the network
        is resized; the next chunk takes that step again. Halving finds the step:

            chunk    . . . . . x . .     x overflows
            halves   [. . . .]           no overflow: these steps are kept
                             [. x]       overflow: it is halved
                             [.]         kept
                               [x]       the network takes the size that this step asks for

        Sizes differ in rounding. If networks were resized at the ends of chunks, the clock would
        decide which numbers a run leaves.
        """
        started = time.perf_counter()
        self.known = None, None
        before = (self.state, self.sums)
        done, left = 0, num_steps
        overflow = self._chunk(num_steps)
        if overflow is None:
            return time.perf_counter() - started, num_steps
        while left > 1:
            self.state, self.sums = before
            if self._chunk(left // 2) is None:
                before = (self.state, self.sums)
                done, left = done + left // 2, left - left // 2
            else:
                left //= 2
        self.state, self.sums = before
        overflow = self._chunk(1)
        assert overflow is not None
        seconds = time.perf_counter() - started
        self.sums = before[1]
        self._resize(overflow)
        return seconds, done

    def _chunk(self, num_steps: int) -> Resized | None:
        """Takes the steps. If they overflowed, returns what the run must go on with."""
        self.state = before = laid_out(self.state, self.out[0])
        self.state, self.sums = self.chunk(
            self.key_run, self.learner, self.problem, before, self.sums, np.int32(num_steps)
        )
        jax.block_until_ready(self.sums)
        resized = self.learner.resize(before, self.state, self.problem) if self.can_resize else None
        return resized if resized is not None and resized.rerun else None

    def fit(self) -> None:
        """Takes another size if the state asks for one. The caller does so at records, whose
        steps do not depend on the clock.
        """
        if self.can_resize:
            resized = self.learner.resize(self.state, self.state, self.problem)
            if resized is not None:
                self._resize(resized)

    def _resize(self, resized: Resized) -> bool:
        """Resizes the network and returns True, unless the best network would be lost by it."""
        best = self.best
        if best is not None and resized.carried is not None:
            params = resized.carried(best["params"])
            if params is None:
                return False
            best = best | {"params": params}
        self.problem, self.state = placed(self.home, (resized.problem, resized.state))
        self.test = placed(self.home, self.problem.held_out())
        if best is not None and resized.carried is None:
            best = self._call(_first_best, (None, None, 0), self.state)
        self.best = best
        self._compile()
        return True

    def record(self, num_steps: int) -> Record:
        """What `num_steps` steps have led to; their sums begin again, and the best network is kept.

        One program makes what a record holds, and all of it comes to the host at once.
        """
        found, self.best = self.recorder(
            self.learner, self.problem, self.test, self.state, self.best
        )
        sums, found = jax.device_get((self.sums, found))
        self.sums = laid_out(_copied(self.zeros), self.out[1])
        self.known = self.state, found["sound"]
        metrics, share = self._means(sums, num_steps)
        held_out = {f"held_out/{name}": _plain(m) for name, m in found["held_out"].items()}
        return Record(metrics, share, found["sound"], held_out)

    def _means(self, sums: dict[str, Any], num_steps: int) -> tuple[dict[str, Any], Any]:
        """Means of the metrics, and the share of steps whose loss was finite.

        Where such steps are skipped, the means are over the others. The host divides: a division
        by jax would be compiled.
        """
        finite = sums.pop(FINITE, None)
        share = 1.0 if finite is None else np.asarray(finite, np.float64) / num_steps

        def mean(name, total):
            if name in COUNTS:
                return total
            if finite is None or not self.skip:
                return total / np.asarray(num_steps, total.dtype)
            extra = (1,) * (np.ndim(total) - np.ndim(finite))
            count = np.reshape(finite, np.shape(finite) + extra).astype(total.dtype)
            with np.errstate(divide="ignore", invalid="ignore"):  # no step had a finite loss
                return total / count

        return {name: _plain(mean(name, total)) for name, total in sums.items()}, share

    def sound(self) -> np.ndarray:
        """Whether the solution is finite, for each seed; a record has found it out already."""
        state, sound = self.known
        if state is not self.state:
            sound = np.asarray(self._call(_sound, (None, None, 0), self.state))
            self.known = self.state, sound
        return sound

    def copied(self) -> Any:
        """The state, kept from the next chunk, which takes its memory."""
        return _copied(self.state)

    def merged(self, good: Any, which: np.ndarray) -> Any:
        """An earlier state, but this one's where `which`; this one if its size has changed."""
        if jax.tree.map(jnp.shape, good) != jax.tree.map(jnp.shape, self.state):
            return self.copied()
        return tree_where(which if self.many else np.all(which), self.state, good)

    def put_back(self, good: Any, which: np.ndarray) -> None:
        """Gives some seeds an earlier state, whose steps are counted on from here.

        A state of another size stays: it was good when the network took its present size.
        """
        if jax.tree.map(jnp.shape, good) == jax.tree.map(jnp.shape, self.state):
            self.state = self.merged(with_step(good, self.state.step), ~which)

    def solution(self) -> Params:
        return self._call(_solution, (None, None, 0), self.state)

    def best_params(self) -> Params | None:
        return None if self.best is None else self.best["params"]

    def saved(self) -> dict[str, Any]:
        return {"state": self.state, "sums": self.sums, "best": self.best}

    @property
    def size(self) -> int | None:
        """The network's size, where it may change and the learner can return to it; else None."""
        if self.can_resize and isinstance(self.learner, FitsCheckpoints):
            return self.learner.size(self.problem)
        return None

    def saved_like(self, notes: Mapping[str, Any]) -> dict[str, Any]:
        """What `saved` returns, once the network has the size that a checkpoint notes."""
        if notes.get("size") is not None and isinstance(self.learner, FitsCheckpoints):
            resized = self.learner.at_size(notes["size"], self.state, self.problem)
            if resized is not None:
                self._resize(resized)
        return self.saved()

    def load(self, tree: dict[str, Any]) -> None:
        self.state = laid_out(tree["state"], self.out[0])
        self.sums = laid_out(tree["sums"], self.out[1])
        self.best = laid_out(tree["best"], layouts(self.best))

    def _call(self, fn: Callable, axes: tuple, *arguments: Any) -> Any:
        """Calls `fn(learner, problem, ...)` over seeds."""
        arguments = (self.learner, self.problem, *arguments)
        return self._finished(self._begun(fn, axes, arguments))(*arguments)

    def _over_seeds(self, fn: Callable, axes: tuple) -> Callable:
        return fn if self.num_seeds is None else over_runs(fn, axes, self.num_seeds)

    def _begun(
        self, fn: Callable, axes: tuple, arguments: tuple, donate: tuple = (), out: Any = None
    ) -> "_Compilation":
        """`fn` over seeds, being compiled for these arguments. The same request compiles once.

        Args:
            arguments: may be abstract.
            out: the layout of what `fn` returns, a prefix of its tree; None leaves it open.
        """
        leaves = jax.tree.leaves(arguments)
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
        setup = (chunk_floats(), *(str(jax.config.values.get(name)) for name in _SETUP))
        several = self.home is not None or layouts(leaves) is not None
        out = self.whole if out is None else out
        lies = (self.mesh, *(getattr(x, "sharding", None) for x in leaves)) if several else ()
        lies += tuple(jax.tree.leaves(out))
        request = (fn, self.many and axes, donate, jax.tree.structure(arguments), shapes, setup)
        request += (lies, jax.tree.structure(out))
        begun = executables.get(request)
        if begun is not None and begun.error is None:  # a try after an error may find more memory
            executables.move_to_end(request)
            return begun
        if fn is self.run_chunk:
            warn_of_retrace(self.learner, self.problem)
        started = time.perf_counter()
        with on_devices(self.mesh):
            program = self._over_seeds(fn, axes)
            program = jax.jit(program, donate_argnums=donate, out_shardings=out)
            lowered = program.lower(*arguments)
            shapes_out = program.eval_shape(*arguments)
        options = DRAWN_ONCE if fn is _first and _only_draws(lowered) else None
        executables[request] = begun = _Compilation(lowered, options, shapes_out)
        begun.start()
        self.compile_seconds += time.perf_counter() - started
        self.compiles += 1
        if len(executables) > 64:
            executables.popitem(last=False)
        return begun

    def _finished(self, begun: "_Compilation") -> Any:
        """The compiled program; the time that is waited for it counts as compilation."""
        started = time.perf_counter()
        begun.join()
        self.compile_seconds += time.perf_counter() - started
        if begun.error is not None:
            raise begun.error
        return begun.program


class _Compilation(threading.Thread):
    """A program that is compiled in a thread, while others are traced and compiled.

    Attributes:
        shapes: what the program returns, as abstract arrays.
        program: the compiled program, once the thread has ended.
        error: why there is none.
    """

    def __init__(self, lowered: Any, options: dict[str, Any] | None, shapes: Any):
        super().__init__()
        self.shapes = shapes
        self.program: Any = None
        self.error: Exception | None = None
        self._lowered, self._options = [lowered], options

    def run(self) -> None:
        try:
            # taken away, so that its memory is free afterwards
            self.program = self._lowered.pop().compile(compiler_options=self._options)
        except Exception as error:
            self.error = error


# How the draw of the first networks is compiled for a CPU, which runs it once: in a quarter of the
# time, to the same bits. Programs that evaluate networks would differ from others in rounding.
DRAWN_ONCE: dict[str, Any] = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):  # later ones have no other emitters and refuse the name
    DRAWN_ONCE["xla_cpu_use_fusion_emitters"] = False
# Settings of jax that change what is compiled.
_SETUP = (
    "jax_default_matmul_precision",
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_default_device",
    "jax_disable_most_optimizations",
    "jax_platforms",
)
# The compilations of this process; the one that was used last stands at the end.
executables: collections.OrderedDict[Any, Any] = collections.OrderedDict()


def _first(key, learner, problem, params):
    key_init, key_run = split_key(key)
    state = learner.init(key_init, problem, params)
    check_fits("the learner's state", state)
    has_test = problem.held_out() is not None
    best = _first_best(learner, problem, state) if has_test else None
    sums = zero_sums(learner, problem, state)
    for name in OF_RECORDS & set(sums):
        raise ValueError(f"metrics must not hold {name!r}, which a record has of its own")
    if "loss" in sums:
        sums = sums | {FINITE: jnp.int32(0)}
    return key_run, state, sums, best


def _only_draws(lowered: Any) -> bool:
    """Whether a program for a CPU evaluates no network: it has no product and no sum.

    Where the user has turned optimisation off, nothing is gained by doing so again.
    """
    if platform() != "cpu" or jax.config.values.get("jax_disable_most_optimizations"):
        return False
    sums = ("stablehlo.dot", "stablehlo.convolution", "stablehlo.reduce", "custom_call")
    text = lowered.as_text()
    return not any(name in text for name in sums)


@jax.jit
def _copied(tree):
    """The tree in memory of its own, by one program for all leaves."""
    return jax.tree.map(jnp.copy, tree)


def _first_best(learner, problem, state):
    return {"params": learner.solution(state, problem), "loss": jnp.array(jnp.inf)}


def _solution(learner, problem, state):
    return learner.solution(state, problem)


def _sound(learner, problem, state):
    return tree_finite(learner.solution(state, problem))


def _recorded(learner, problem, test, state, best):
    """Whether the solution is finite, its metrics on the test split, and the best network yet."""
    params = learner.solution(state, problem)
    found = {"sound": tree_finite(params), "held_out": {}}
    if test is None:
        return found, best
    evaluation = test.evaluate(params, test.sample(jax.random.key(0), jnp.int32(0)))
    loss = evaluation.loss.astype(best["loss"].dtype)
    better = loss < best["loss"]
    best = tree_where(better, {"params": params, "loss": loss}, best)
    return found | {"held_out": {"loss": evaluation.loss} | evaluation.metrics}, best


def _one_for_each(params: Params, problem: Problem, num_seeds: int | None) -> bool:
    """Whether `params` has a leading axis of seeds, and so one network for each seed."""
    if num_seeds is None:
        return False
    one = jax.eval_shape(problem.init, jax.random.key(0))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(one), strict=True)
    return all(leaf.ndim > like.ndim and leaf.shape[0] == num_seeds for leaf, like in pairs)


def _plain(value: Array) -> Any:
    return np.asarray(value, np.float64).tolist()
