"""The words of jaxevo: task, model, problem, learner, estimator.

Below them stand pytrees as settings, tree arithmetic, noise, populations and descent. The names
that other folders share stand in `__init__.pyi`; each is imported when it is first used, so that
`jaxevo --help` waits for no array library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
