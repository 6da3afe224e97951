"""jaxevo: populations of neural networks, trained without back-propagation or beside it.

    result = jaxevo.train(jax.random.key(0), learner, problem, num_steps=400)

The public names stand in `__init__.pyi`, the one table of them. Each is imported when it is first
used, so that importing jaxevo costs next to nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
