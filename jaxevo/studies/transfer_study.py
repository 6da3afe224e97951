"""Transfer: what a learner gains on a task from those it has learned before.

A study trains PathNet on sequences of tasks, A, B, ..., and on the later ones three controls from
the same pairs of tasks and seeds: a fresh PathNet, a random path trained alone, and the path that
learned the task before, trained on with nothing frozen. All replicates of a phase (sequences x
seeds) are one jitted program that ends each of them at its criterion, and share their data.
"""

import csv
import dataclasses
import functools
import io
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import (
    Problem,
    check_key,
    check_requirements,
    require,
    require_integer,
)
from jaxevo.core.pytree import described
from jaxevo.learners.pathnet.learner import PathNet, PathNetState, network_of
from jaxevo.models.paths import chance_overlap, module_use, overlap, use_entropy
from jaxevo.studies import replicates
from jaxevo.studies.transfer_measures import score_of, summary
from jaxevo.training import checkpoint
from jaxevo.training.checkpoint import write_whole
from jaxevo.training.driver import check_unchanged, stoppable
from jaxevo.training.folder import RunFolder, for_json, read_json

CALL_SECONDS = 10.0  # of one jitted call: how long Ctrl-C may wait
METHODS = ("pathnet", "independent", "independent-fixed", "fine-tuning")


class Phase(NamedTuple):
    """One method on one task."""

    method: str
    task: int  # 0 is the first of a sequence


class Transfer(NamedTuple):
    """What `transfer` returns.

    Attributes:
        rows: one dict for each method, task and replicate: `generations` and `batches` to the
            criterion or the end, `reached`, `fitness`, `held_out/...`, `distinct` modules and
            `overlap` with the first task's path per layer, `frozen` share and `updates` of each
            module, and whether the outputs on earlier tasks kept their bits (`retained`).
        table: one dict for each method and task after the first, see `transfer_measures.summary`.
        use: module use of the first replicate's population and mean entropy per layer, over the
            generations of each phase.
        interrupted: whether it was stopped before the end; go on by `resume_from`.
        folder: where the files are, or None.
    """

    rows: list[dict[str, Any]]
    table: list[dict[str, Any]]
    use: list[dict[str, Any]]
    interrupted: bool
    folder: pathlib.Path | None


def transfer(
    key: Key[Array, ""],
    learner: PathNet,
    sequences: Sequence[Sequence[Problem]],
    *,
    num_seeds: int = 1,
    max_generations: int = 500,
    methods: Sequence[str] = METHODS,
    chunk_size: int | None = None,
    record_every: int = 10,
    folder: str | pathlib.Path | None = None,
    resume_from: str | pathlib.Path | None = None,
    config: Mapping[str, Any] | None = None,
    save_seconds: float = 60.0,
    on_chunk: Callable[[Phase, int, int], None] | None = None,
) -> Transfer:
    """Trains `learner` and its controls on sequences of tasks, paired by sequence and seed.

    Args:
        key: of the whole study; a replicate's draws depend on it and the replicate's number.
        learner: its `threshold` is the criterion that ends a task.
        sequences: problems to be learned in turn, as many in each, with one model and structure:
            they differ in arrays and numbers only, and what they share is not copied.
        num_seeds: independent repetitions of each sequence, >= 1.
        max_generations: that a task may take, >= 1; a control that trains one path alone may take
            as many batches, and so twice as many generations, or as many times as many as there
            are paths that train together.
        methods: "pathnet", which the others follow on, and any of `METHODS`.
        chunk_size: replicates that are trained at once; None: all, and one after another on a
            CPU.
        record_every: generations between two looks at module use, >= 1.
        folder: a new folder for config.json, rows.jsonl, use.jsonl, table.csv, pictures, and
            what it takes to go on.
        resume_from: the folder of a study that was stopped; all else must be the same.
        config: what `config.json` is to hold beside the study's own description.
        save_seconds: between checkpoints, at least.
        on_chunk: called with the phase, the generation and the replicates still at work.

    Raises:
        ValueError: a bad number, sequences of different length, more tasks than the network has
            read-outs, an unknown method, or a resumed study that differs.
        FileExistsError: `folder` holds files.
    """
    check_key(key)
    for name, value in {"num_seeds": num_seeds, "max_generations": max_generations,
                        "record_every": record_every}.items():  # fmt: skip
        require_integer(name, 1, value)
    require_integer("chunk_size", 1, chunk_size)
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1 or min(lengths) < 1:
        raise ValueError(f"sequences must all be as long, of a task or more, got {sorted(lengths)}")
    for method in methods:
        require("methods", f"among {', '.join(METHODS)}", method, lambda m: m in METHODS)
    require("methods", "led by 'pathnet'", tuple(methods), lambda m: m[:1] == ("pathnet",))
    require("learner", "a PathNet that freezes", learner,
            lambda one: isinstance(one, PathNet) and one.on_next_problem == "freeze")  # fmt: skip
    check_requirements(learner, sequences[0][0])
    rule = f"at most num_tasks, {network_of(sequences[0][0]).num_tasks}, of the model"
    require("the length of sequences", rule, len(sequences[0]),
            lambda n: n <= network_of(sequences[0][0]).num_tasks)  # fmt: skip
    if folder is not None and resume_from is not None:
        raise ValueError("folder must be None where resume_from is given: the study goes on there")
    description = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "num_seeds": num_seeds,
        "max_generations": max_generations,
        "methods": list(methods),
        "record_every": record_every,
        "num_sequences": len(sequences),
        **for_json(described(learner, "learner.")),
        **for_json(described(sequences[0][0], "problem.")),
    }
    files = None
    if resume_from is not None:
        files = RunFolder.open(resume_from)
        check_unchanged(files.config["run"], description)
    elif folder is not None:
        files = RunFolder.create(folder, {**(config or {}), "run": description})
    study = _Study(key, learner, sequences, num_seeds, max_generations, methods, chunk_size,
                   record_every, files, save_seconds, on_chunk)  # fmt: skip
    with stoppable() as interrupted:
        if resume_from is not None:
            study.restore()
        return study.run(interrupted)


class _Study:
    """A study while it runs: the phase under way, and what the finished ones have left."""

    def __init__(self, key, learner, sequences, num_seeds, max_generations, methods, chunk_size,
                 record_every, files, save_seconds, on_chunk):  # fmt: skip
        num_tasks = len(sequences[0])
        self.network = network_of(sequences[0][0])
        self.learner, self.num_seeds, self.max_generations = learner, num_seeds, max_generations
        self.record_every, self.files, self.save_seconds = record_every, files, save_seconds
        self.on_chunk = on_chunk
        self.num_replicates = len(sequences) * num_seeds
        on_cpu = jax.default_backend() == "cpu"
        self.chunk_size = chunk_size or (1 if on_cpu else self.num_replicates)
        replicated = [sequence for sequence in sequences for _ in range(num_seeds)]
        self.problems = [
            replicates.Replicates.of([sequence[task] for sequence in replicated])
            for task in range(num_tasks)
        ]
        self.keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(
            jnp.arange(self.num_replicates)
        )
        self.phases = [
            Phase(method, task)
            for method in methods
            for task in range(0 if method == "pathnet" else 1, num_tasks)
        ]
        self.rows: list[dict[str, Any]] = []
        self.use: list[dict[str, Any]] = []
        self.position, self.under_way = 0, False
        self.states: dict[str, Any] = {}
        self.saved = time.perf_counter()

    # -------------------------------------------------------------------------- one phase

    def learner_of(self, method: str) -> PathNet:
        settings = {
            "independent-fixed": {"form": "fixed"},
            "fine-tuning": {"form": "fixed", "on_next_problem": "fine_tune"},
        }
        return dataclasses.replace(self.learner, **settings.get(method, {}))

    def keys_of(self, phase: Phase) -> tuple[Array, Array]:
        """Of the first state and of the generations; fresh and fixed networks start alike."""
        number = phase.task * len(METHODS) + METHODS.index(phase.method)

        def split(key):
            return tuple(jax.random.split(jax.random.fold_in(key, number)))

        return jax.vmap(split)(self.keys)

    def limit(self, phase: Phase) -> int:
        """Generations that a phase may take: as many batches for one path as for several."""
        evaluations = self.max_generations * self.learner.paths_per_generation
        return evaluations // self.learner_of(phase.method).paths_per_generation

    def begin(self, phase: Phase) -> None:
        origin = None
        if phase.method == "fine-tuning" and phase.task == 1:
            origin = self.states["first"]
        elif phase.method in ("pathnet", "fine-tuning") and phase.task:
            origin = self.states["current"]
        problems = self.problems[phase.task]
        current = replicates.begin(
            self.keys_of(phase)[0], self.learner_of(phase.method), problems.shared, problems.own,
            origin, structure=problems.structure, chunk_size=self.chunk_size,
        )  # fmt: skip
        self.states |= {"current": current, "origin": current if origin is None else origin}
        if phase == Phase("pathnet", 0):
            self.states["first"] = current

    def advance(self, phase: Phase, last: int) -> None:
        problems = self.problems[phase.task]
        self.states["current"] = replicates.advance(
            self.keys_of(phase)[1], self.learner_of(phase.method), problems.shared, problems.own,
            self.states["current"], jnp.int32(last), structure=problems.structure,
            chunk_size=self.chunk_size,
        )  # fmt: skip

    def look(self, phase: Phase) -> tuple[int, int]:
        """Records module use; returns the generation and the replicates still at work."""
        state = self.current
        generation = int(state.step.max())
        working = int(jnp.sum(~state.done & (state.generations < self.limit(phase))))
        if phase.method == "pathnet":
            num_modules = state.updates.shape[-1]
            use = jax.vmap(lambda population: module_use(population, num_modules))(state.population)
            self.use.append({
                "method": phase.method,
                "task": phase.task,
                "generation": generation,
                "first_done": bool(state.done[0]),
                "use": np.asarray(use[0], float).round(4).tolist(),
                "entropy": np.asarray(jax.vmap(use_entropy)(use).mean(0), float).round(4).tolist(),
            })  # fmt: skip
        if self.on_chunk is not None:
            self.on_chunk(phase, generation, working)
        return generation, working

    def finish(self, phase: Phase) -> None:
        """The rows of a phase that has come to its end."""
        state = self.current
        problems = self.problems[phase.task]
        held_out = replicates.held_out(
            state.shared.params, problems.shared, problems.own, structure=problems.structure,
            chunk_size=self.chunk_size,
        )  # fmt: skip
        retained = np.ones(self.num_replicates, bool)
        if phase.method == "pathnet":
            for task in range(phase.task):
                earlier = self.problems[task]
                before, after = (
                    np.asarray(replicates.outputs(
                        s.shared.params, jnp.int32(task), earlier.shared, earlier.own,
                        structure=earlier.structure, chunk_size=self.chunk_size,
                    ))
                    for s in (self.origin, state)
                )  # fmt: skip
                same = before.view(np.uint8) == after.view(np.uint8)
                retained &= same.reshape(self.num_replicates, -1).all(1)
        uses = np.asarray(state.shared.params["uses"])
        num_batches = self.learner.num_batches
        for i in range(self.num_replicates):
            own = uses[i, phase.task]
            row = {
                "method": phase.method,
                "task": phase.task,
                "sequence": i // self.num_seeds,
                "seed": i % self.num_seeds,
                "generations": int(state.generations[i]),
                "batches": int(state.evaluations[i]) * num_batches,
                "reached": bool(state.done[i]),
                "fitness": float(state.best[i]),
                **{name: float(values[i]) for name, values in held_out.items()},
                "uses": own.tolist(),
                "distinct": (own > 0).sum(1).tolist(),
            }
            if phase.method == "pathnet":
                row |= {
                    "retained": bool(retained[i]),
                    "overlap": np.asarray(overlap(uses[i, 0], own)).tolist(),
                    "frozen": np.asarray(state.shared.params["frozen"][i]).mean(1).tolist(),
                    "updates": np.asarray(state.updates[i]).tolist(),
                }
            self.rows.append(row)
        if phase == Phase("pathnet", 0):
            self.states["first"] = state
        self.position += 1

    @property
    def current(self) -> PathNetState:
        return self.states["current"]

    @property
    def origin(self) -> PathNetState:
        """What the phase began from."""
        return self.states["origin"]

    # --------------------------------------------------------------------------- all phases

    def run(self, interrupted: Any) -> Transfer:
        stride = self.record_every
        while self.position < len(self.phases) and not interrupted:
            phase = self.phases[self.position]
            if not self.under_way:
                self.begin(phase)
                self.under_way = True
            generation, working = self.look(phase)
            while working and not interrupted:
                started = time.perf_counter()
                last = min(generation + stride, self.limit(phase))
                self.advance(phase, last)
                generation, working = self.look(phase)
                seconds = time.perf_counter() - started
                if seconds > CALL_SECONDS and stride > 1:
                    stride = max(1, stride // 2)
                if working and time.perf_counter() - self.saved > self.save_seconds:
                    self.save(generation)
            if not working:
                self.finish(phase)
                self.under_way = False
                self.save(0)
        if self.under_way and (generation := int(self.current.step.max())):
            self.save(generation)
        return self.result(bool(interrupted) and self.position < len(self.phases))

    def result(self, interrupted: bool) -> Transfer:
        done = {row["method"] for row in self.rows if row["task"]}
        table = summary(self.rows) if "pathnet" in done else []
        path = None if self.files is None else self.files.path
        found = Transfer(self.rows, table, self.use, interrupted, path)
        if path is not None:
            _write(found, path)
            if found.table and not interrupted:
                _draw(found, path, self.chance())
        return found

    def chance(self) -> float | None:
        """Modules that two random paths share; None where frozen ones are on every path."""
        if self.learner.frozen_path == "always":
            return None
        network = self.network
        return chance_overlap(
            network.num_layers,
            network.num_modules,
            network.num_active,
            self.learner.mutation.initial_paths,
        )

    # ---------------------------------------------------------------------- what is on disk

    def save(self, generation: int) -> None:
        """What it takes to go on: the states, and the rows so far."""
        self.saved = time.perf_counter()
        if self.files is None:
            return
        number = self.position * 10**6 + generation  # checkpoints are ordered by it
        notes = {
            "position": self.position,
            "under_way": self.under_way,
            "rows": for_json(self.rows),
            "use": self.use,
        }
        checkpoint.save(self.files.checkpoints, number, self.states, notes)

    def restore(self) -> None:
        assert self.files is not None
        folder = self.files.checkpoints
        known = checkpoint.steps(folder.absolute())
        if not known:
            return
        position, generation = divmod(known[-1], 10**6)
        # the phase whose state is the current one
        phase = self.phases[position if generation else position - 1]
        found = checkpoint.restore(folder, self.abstract(phase))
        self.states = dict(found.tree)
        self.position, self.under_way = found.notes["position"], found.notes["under_way"]
        self.rows, self.use = found.notes["rows"], found.notes["use"]

    def abstract(self, phase: Phase) -> dict[str, Any]:
        """Shapes and dtypes of the states in this phase."""

        def begun(method):
            problems = self.problems[0]
            return jax.eval_shape(
                functools.partial(
                    replicates.begin, structure=problems.structure, chunk_size=self.chunk_size
                ),
                self.keys, self.learner_of(method), problems.shared, problems.own, None,
            )  # fmt: skip

        whole, own = begun("pathnet"), begun(phase.method)
        chained = phase.method == "fine-tuning" and phase.task > 1
        alone = phase.method == "independent-fixed"
        origin = own if chained or alone else whole
        return {"current": own, "origin": origin, "first": whole}


# ------------------------------------------------------------------------------------- files


def _write(found: Transfer, folder: pathlib.Path) -> None:
    for name, lines in (("rows.jsonl", found.rows), ("use.jsonl", found.use)):
        text = "".join(json.dumps(for_json(line)) + "\n" for line in lines)
        write_whole(folder / name, text)
    if not found.table:
        return
    table = io.StringIO()
    columns = list(dict.fromkeys(name for row in found.table for name in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.table)
    write_whole(folder / "table.csv", table.getvalue())


def _draw(found: Transfer, folder: pathlib.Path, chance: float | None) -> None:
    from jaxevo import plotting
    from jaxevo.plotting import pathways as pictures

    figures = {
        "network.png": pictures.network(paths_of(found.rows), "paths of the first replicate"),
        "use.png": pictures.module_use(first_use(found.use), "modules in use, first replicate"),
    }
    score = None
    if any(row["reached"] for row in found.table):
        figures["costs.png"] = pictures.costs(found.table)
    else:
        score = score_of(found.table[0])
        figures["scores.png"] = pictures.scores(found.table, score)
    if any(row["method"] == "independent" for row in found.rows):
        figures["overlap.png"] = pictures.overlap(found.rows, chance, score=score)
    for name, figure in figures.items():
        plotting.save(figure, folder / name)


def first_use(use: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Module use of the first replicate while it was at work, and where it ended."""
    kept, ended = [], set()
    for row in use:
        if row["task"] not in ended:
            kept.append(row)
        if row["first_done"]:
            ended.add(row["task"])
    return kept


def paths_of(rows: list[dict[str, Any]], sequence: int = 0, seed: int = 0) -> dict[str, Any]:
    """PathNet's paths of one replicate, as the params that hold them: uses, frozen and task."""
    own = [
        row
        for row in rows
        if (row["method"], row["sequence"], row["seed"]) == ("pathnet", sequence, seed)
    ]
    uses = np.array([row["uses"] for row in sorted(own, key=lambda row: row["task"])])
    return {"uses": uses, "frozen": (uses[:-1] > 0).any(0), "task": len(uses) - 1}


def load_transfer(folder: str | pathlib.Path) -> Transfer:
    """The result of a study that is on disk.

    Raises:
        FileNotFoundError: no study was made there.
    """
    path = pathlib.Path(folder)
    read_json(path / "config.json")

    def lines(name):
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"folder must hold a study's {name}, got {folder}")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    rows = lines("rows.jsonl")
    done = {row["method"] for row in rows if row["task"]}
    return Transfer(rows, summary(rows) if done else [], lines("use.jsonl"), False, path)
