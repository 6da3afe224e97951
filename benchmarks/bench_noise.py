"""The cost of making random numbers, against that of copying as many."""

import jax
import timing
from timing import SEED

from jaxevo import noise

WIDTH = 256  # numbers of a row: noise is drawn in the shapes of weights


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    num = 2**20 if args.quick else 2**28 if timing.on_gpu() else 2**22
    shape, dtype = (num // WIDTH, WIDTH), timing.dtype(args)
    settings = timing.header(args, D=num)
    key = jax.random.key(SEED)
    numbers = jax.random.normal(key, shape, dtype)
    repeats = max(1, 2**22 // num)  # of one timed call

    def compiled(name, fn, data):
        program = timing.compiled(name, fn, data)

        def call():
            for _ in range(repeats):
                result = program.call()
            return result

        return program._replace(call=call, units=repeats * num)

    programs = [compiled("copy", lambda x: x + 1, numbers)]
    for source in noise.SOURCES:
        for draw in (noise.normal, noise.rademacher):

            def make(key, draw=draw, source=source):
                return draw(key, shape, dtype, source)

            programs.append(compiled(f"{draw.__name__}, {source}", make, key))
    timings = timing.measure(programs, args)
    rows = [
        {
            "variant": t.program.name,
            "ns/number": 1e9 * t.median,
            "x copy": timing.ratio(t, timings[0]),
        }
        | timing.memory_and_compile(t)
        for t in timings
    ]
    timing.table(rows)
    timing.write(args, [{"settings": settings, "rows": rows}])


if __name__ == "__main__":
    main()
