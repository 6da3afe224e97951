"""Training: one jitted loop, and the host that drives it, saves it and shows it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
