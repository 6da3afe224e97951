from . import correspondence as correspondence
from .comparison import Comparison as Comparison
from .comparison import compare as compare
