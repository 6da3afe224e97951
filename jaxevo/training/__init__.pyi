from . import sinks as sinks
from .driver import RunResult as RunResult
from .driver import run as run
from .loop import TrainResult as TrainResult
from .loop import sweep as sweep
from .loop import train as train
from .memory import estimate_memory as estimate_memory
