"""Ways to look at a network without changing it: layers, wiring, sensitivities, spectra."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
